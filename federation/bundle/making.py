"""Makes a bundle: wheels by pip, the list of ingredients by CycloneDX's own tool, a manifest, a person's signature."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sovfed
from sovfed.federation.archive.signing import PUBLISHER, sign
from sovfed.federation.bundle import installer
from sovfed.federation.bundle.lock import OURS, lock_text, locked
from sovfed.federation.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sovfed.federation.archive.signer import SigningKey

TORCH: Final = "torch"
TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"
_EPOCH: Final = 315_532_800  # 1980: nothing in the archive tells when it was made


def make(
    out: Path, role: str, signer: SigningKey, wheel: Path, *, extras: tuple[str, ...] = (), cpu: bool = True,
    torch_index: str = TORCH_INDEX, announce: Callable[[str], None] = lambda _line: None,
) -> Path:  # fmt: skip
    """The bundle of `wheel`, which is ours, with all that it needs, in folder `out`; returns its path.

    It is installed once in a folder of its own, without a network, to show that nothing is missing and to list what is
    in it. Raises ConfigError or ServiceError with pip's own words.
    """
    with tempfile.TemporaryDirectory(prefix="sovfed-bundle-") as name:
        folder = Path(name) / "bundle"
        wheels = folder / "wheels"
        wheels.mkdir(parents=True)
        versions = locked(role, extras, cpu=cpu)
        (folder / "lock.txt").write_text(lock_text(versions), encoding="utf-8")
        shutil.copy(wheel, wheels)
        if cpu and torch_index:
            announce(f"fetching torch from {torch_index}")
            _download(wheels, {TORCH: versions.pop(TORCH)}, "--extra-index-url", torch_index)
        announce(f"fetching {len(versions)} wheels")
        _download(wheels, versions)
        announce("installing them apart, without a network")
        _list_ingredients(folder, Path(name) / "trial", wheel.name)
        shutil.copy(Path(installer.__file__), folder / "install.py")
        shutil.copy(Path(installer.__file__).with_name("Containerfile"), folder)
        manifest = manifest_of(folder, role, extras, sovfed.__version__)
        put_signed(folder, manifest, signer)
        return packed(folder, out / f"sovfed-{sovfed.__version__}-{role}-{_platform()}.tar")


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Our wheel, built in `folder` from the files of `checkout`. Raises ConfigError, or ServiceError with pip's words.

    pip takes a path without a slash for the name of a package, which it would fetch, and build, from the index.
    """
    _pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(checkout.resolve()))
    wheel = next(folder.glob(f"{OURS}-*.whl"), None)
    if wheel is None:
        raise ConfigError(f"{checkout}: no checkout of {OURS}")
    return wheel


def _download(wheels: Path, versions: dict[str, str], *options: str) -> None:
    """Fetch `versions` by pip; an index that its `options` name besides its own should have nothing else."""
    pinned = [f"{name}=={version}" for name, version in versions.items()]
    _pip(sys.executable, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(wheels), *options, *pinned)


def _list_ingredients(folder: Path, trial: Path, wheel: str) -> None:
    venv.create(trial, with_pip=True, symlinks=True)
    python = str(trial / "bin" / "python")
    offline = ("--no-index", "--no-deps", "--no-compile", "--find-links", str(folder / "wheels"))
    _pip(python, "install", *offline, "--requirement", str(folder / "lock.txt"), str(folder / "wheels" / wheel))
    _pip(python, "check")
    argv = ["cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON", "-o", str(folder / "sbom.json")]
    _run([sys.executable, "-m", *argv, python], "cyclonedx-bom is not installed here: pip install 'sovfed[bundle]'")


def manifest_of(folder: Path, role: str, extras: tuple[str, ...], version: str) -> bytes:
    """What is signed: for whom and which machines the bundle in `folder` is, and the digest of each file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    values = {
        "bundle": OURS, "version": version, "role": role, "extras": extras,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}", "platform": _platform(),
        "files": {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }  # fmt: skip
    return json.dumps(values, sort_keys=True, indent=1).encode() + b"\n"


def put_signed(folder: Path, manifest: bytes, signer: SigningKey) -> None:
    """Write `manifest` and the signature of `signer` into `folder`."""
    signature = sign(manifest, PUBLISHER, signer.certificate, signer.key, domain=installer.DOMAIN)
    (folder / installer.MANIFEST).write_bytes(manifest)
    (folder / installer.SIGNATURE).write_bytes(signature.to_bytes())


def _platform() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def packed(folder: Path, path: Path) -> Path:
    """The archive `path` of the files in `folder`; equal files make equal archives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
            entry = tarfile.TarInfo(f"{path.stem}/{file.relative_to(folder)}")
            content = file.read_bytes()
            entry.size, entry.mtime, entry.mode = len(content), _EPOCH, 0o644
            archive.addfile(entry, io.BytesIO(content))
    return path


def _pip(python: str, *arguments: str) -> None:
    quiet = ["-I", "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input"]
    _run([python, *quiet, *arguments], "pip is not installed here")


def _run(argv: Sequence[str], if_missing: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        if "No module named" in said:
            raise ConfigError(if_missing)
        raise ServiceError(f"{Path(argv[0]).name} {' '.join(argv[1:5])} …: {said}")
