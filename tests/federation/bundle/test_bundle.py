"""A bundle on a machine without a network: who signed it, install, upgrade, the version before, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.packages import make_signer
from tests.server.agency import Authority, make_institution

from sovfed.federation.archive.signer import SigningKey
from sovfed.federation.bundle import installer
from sovfed.federation.bundle.installer import RefusedError, check
from sovfed.federation.bundle.lock import lock_text, locked
from sovfed.federation.bundle.making import build_wheel, manifest_of, packed, put_signed
from sovfed.federation.certificates import key_from_pem, to_der
from sovfed.federation.errors import ConfigError
from sovfed.federation.identity import SignerIdentity, load_certificate
from sovfed.server.registry import authority

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
BACKEND = """
import zipfile


def build_wheel(folder, config_settings=None, metadata_directory=None):
    info = "{name}-1.0.dist-info"
    with zipfile.ZipFile(f"{{folder}}/{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{{info}}/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n")
        wheel.writestr(f"{{info}}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{{info}}/RECORD", "")
    return "{name}-1.0-py3-none-any.whl"
"""
PROGRAM = "import sys\nprint('sovfed, version {version}')\n"


@dataclasses.dataclass(frozen=True)
class Signed:
    """An authority, a person whom it certified, and what whoever installs was told by another way."""

    home: Path
    signer: SigningKey

    @property
    def root(self) -> Path:
        return self.home / "root.pem"

    @property
    def fingerprint(self) -> str:
        shown = subprocess.run(
            ["openssl", "x509", "-in", self.root, "-outform", "DER"], capture_output=True, check=True
        )
        return hashlib.sha256(shown.stdout).hexdigest()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    folder = tmp_path_factory.mktemp("people")
    authority.init(folder / "authority", "Ministry")
    return Signed(folder / "authority", make_signer(folder, folder / "authority", "ann", "agency"))


def write_bundle(folder: Path, version: str, signer: SigningKey, role: str = "institution") -> Path:
    """A whole bundle whose one wheel is a sovfed that says its version and no more: ours brings 400 MB."""
    (folder / "wheels").mkdir(parents=True)
    info = f"sovfed-{version}.dist-info"
    with zipfile.ZipFile(folder / "wheels" / f"sovfed-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sovfed/__init__.py", "")
        wheel.writestr("sovfed/__main__.py", PROGRAM.format(version=version))
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: sovfed\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (folder / "lock.txt").write_text("")
    (folder / "sbom.json").write_text('{"bomFormat": "CycloneDX"}')
    shutil.copy(Path(installer.__file__), folder / "install.py")
    put_signed(folder, manifest_of(folder, role, (), version), signer)
    return folder


@pytest.fixture
def bundle(tmp_path: Path, signed: Signed) -> Path:
    return write_bundle(tmp_path / "bundle", "1.0", signed.signer)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The bundle's own install.py, without a network where this user may take it away."""
    apart = ["unshare", "--net"] if os.geteuid() == 0 and shutil.which("unshare") else []
    argv = [*apart, sys.executable, "-I", str(folder / "install.py"), *arguments]
    return subprocess.run(argv, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)


@pytest.mark.timeout(400)  # six installations by pip, each many small files
def test_it_installs_upgrades_and_takes_back_without_a_network(tmp_path: Path, signed: Signed) -> None:
    prefix, home = tmp_path / "opt", tmp_path / "home"
    home.mkdir()
    (home / "ledger.jsonl").write_text("what was learnt\n")
    trusted = ("--root", str(signed.root), "--fingerprint", signed.fingerprint, "--prefix", str(prefix))

    def says() -> str:
        return subprocess.run(
            [prefix / "current" / "bin" / "python", "-m", "sovfed"], capture_output=True, text=True, check=True
        ).stdout.strip()

    for version in ("1.0", "1.1"):
        made = packed(write_bundle(tmp_path / version, version, signed.signer), tmp_path / f"{version}.tar")
        (tmp_path / "unpacked").mkdir(exist_ok=True)
        subprocess.run(["tar", "-xf", made, "-C", tmp_path / "unpacked"], check=True)
        done = run(tmp_path / "unpacked" / version, "install", *trusted)
        assert done.returncode == 0, done.stderr
        assert "signed by URI:urn:sovfed:signer:ann" in done.stdout
        assert says() == f"sovfed, version {version}"
    for version in ("1.0", "1.1"):  # back, and forth again
        done = run(tmp_path / "unpacked" / "1.1", "rollback", "--prefix", str(prefix))
        assert done.returncode == 0, done.stderr
        assert says() == f"sovfed, version {version}"
    current = (prefix / "current").resolve()
    (current / "installed").unlink()  # an installation that was interrupted is made anew
    (current / "bin" / "python").unlink()
    assert run(tmp_path / "unpacked" / "1.1", "install", *trusted).returncode == 0
    assert says() == "sovfed, version 1.1"
    assert [path.name for path in home.iterdir()] == ["ledger.jsonl"]
    assert (home / "ledger.jsonl").read_text() == "what was learnt\n"


def test_nothing_before_the_first_version_can_be_taken_back(tmp_path: Path, bundle: Path) -> None:
    done = run(bundle, "rollback", "--prefix", str(tmp_path / "opt"))
    assert (done.returncode, "no version before" in done.stderr) == (1, True)


def test_a_bundle_that_holds_says_what_it_is(bundle: Path, signed: Signed) -> None:
    values = check(bundle, signed.root, signed.fingerprint, signed.home / "crl.pem")
    assert (values["version"], values["role"]) == ("1.0", "institution")


def _change(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b" ")


def _resign(bundle: Path, **changes: object) -> None:
    values = {**json.loads((bundle / "manifest.json").read_bytes()), **changes}
    (bundle / "manifest.json").write_bytes(json.dumps(values).encode())


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda bundle: _change(bundle, "wheels/sovfed-1.0-py3-none-any.whl"), "not the bytes"),
        (lambda bundle: _change(bundle, "install.py"), "not the bytes"),
        (lambda bundle: (bundle / "wheels" / "torch-9-py3-none-any.whl").write_bytes(b""), "not what was signed"),
        (lambda bundle: (bundle / "sbom.json").unlink(), "not what was signed"),
        (lambda bundle: _change(bundle, "manifest.json"), "does not hold"),
        (lambda bundle: _resign(bundle, files={}), "does not hold"),
    ],
)  # fmt: skip
def test_what_was_changed_after_signing_is_refused(
    bundle: Path, signed: Signed, damage: Callable[[Path], None], why: str
) -> None:
    damage(bundle)
    with pytest.raises(RefusedError, match=why):
        check(bundle, signed.root, signed.fingerprint, None)


def test_a_wheel_that_hides_among_compiled_files_is_refused(bundle: Path, signed: Signed) -> None:
    """pip prefers it to the signed one: the same version, a later build."""
    shutil.copy(
        bundle / "wheels/sovfed-1.0-py3-none-any.whl", bundle / "wheels/sovfed-1.0-9__pycache__-py3-none-any.whl"
    )
    with pytest.raises(RefusedError, match="not what was signed"):
        check(bundle, signed.root, signed.fingerprint, None)


@pytest.mark.parametrize("name", ["argparse", "__future__", "re"])
@pytest.mark.parametrize("isolated", [True, False])
def test_nothing_beside_the_installer_is_run_before_it_is_checked(
    tmp_path: Path, bundle: Path, signed: Signed, name: str, isolated: bool
) -> None:
    (bundle / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    trusted = ("--root", str(signed.root), "--fingerprint", signed.fingerprint)
    argv = [sys.executable, *(["-I"] if isolated else []), str(bundle / "install.py"), "check", *trusted]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, "not what was signed" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_link_to_the_signed_bytes_is_refused(tmp_path: Path, bundle: Path, signed: Signed) -> None:
    """They may be others once they were checked."""
    (bundle / "sbom.json").rename(tmp_path / "sbom.json")
    (bundle / "sbom.json").symlink_to(tmp_path / "sbom.json")
    with pytest.raises(RefusedError, match="no plain file"):
        check(bundle, signed.root, signed.fingerprint, None)


@pytest.mark.parametrize("by_machine", [True, False])
def test_no_root_but_the_one_of_the_fingerprint_counts(
    tmp_path: Path, signed: Signed, by_machine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a second one in the file, nor one that the machine trusts."""
    authority.init(tmp_path / "other", "Somebody")
    folder = write_bundle(tmp_path / "bundle", "1.0", make_signer(tmp_path, tmp_path / "other", "eve", "nowhere"))
    stranger, root = tmp_path / "other" / "root.pem", signed.root
    if by_machine:
        argv = ["openssl", "x509", "-in", str(stranger), "-noout", "-hash"]
        digest = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        shutil.copy(stranger, tmp_path / f"{digest}.0")
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    else:
        root = tmp_path / "root.pem"
        root.write_bytes(signed.root.read_bytes() + stranger.read_bytes())
    with pytest.raises(RefusedError, match="does not hold"):
        check(folder, root, signed.fingerprint, None)


def test_an_older_version_is_installed_only_if_that_is_meant(tmp_path: Path, signed: Signed) -> None:
    prefix = tmp_path / "opt"
    trusted = ("--root", str(signed.root), "--fingerprint", signed.fingerprint, "--prefix", str(prefix))
    newer, older = (write_bundle(tmp_path / version, version, signed.signer) for version in ("1.10", "1.9"))
    assert run(newer, "install", *trusted).returncode == 0
    done = run(older, "install", *trusted)
    assert (done.returncode, "older than 1.10" in done.stderr) == (1, True)
    assert (prefix / "current").resolve().name.startswith("1.10-")
    assert run(older, "install", *trusted, "--older").returncode == 0


def test_an_agency_is_upgraded_and_taken_back_and_not_replaced_by_an_institutions_bundle_which_lacks_its_server(
    tmp_path: Path, signed: Signed
) -> None:
    prefix = tmp_path / "opt"
    trusted = ("--root", str(signed.root), "--fingerprint", signed.fingerprint, "--prefix", str(prefix))
    for version in ("1.0", "1.1"):
        done = run(write_bundle(tmp_path / version, version, signed.signer, "agency"), "install", *trusted)
        assert done.returncode == 0 and f"sovfed {version} for an agency: every file holds" in done.stdout, done.stderr
    done = run(write_bundle(tmp_path / "theirs", "1.2", signed.signer), "install", *trusted)
    assert (done.returncode, "is of an agency" in done.stderr) == (1, True), done.stderr
    assert run(tmp_path / "1.1", "rollback", "--prefix", str(prefix)).returncode == 0
    assert (prefix / "current").resolve().name.startswith("1.0-agency-")


def test_another_root_is_refused_by_its_fingerprint(bundle: Path, signed: Signed) -> None:
    with pytest.raises(RefusedError, match="its fingerprint is"):
        check(bundle, signed.root, "0" * 64, None)


def test_a_signer_of_another_authority_is_refused(tmp_path: Path, signed: Signed) -> None:
    authority.init(tmp_path / "other", "Somebody")
    stranger = make_signer(tmp_path, tmp_path / "other", "eve", "nowhere")
    folder = write_bundle(tmp_path / "bundle", "1.0", stranger)
    with pytest.raises(RefusedError, match="does not hold"):
        check(folder, signed.root, signed.fingerprint, None)


def test_a_revoked_signer_is_refused_with_the_list(tmp_path: Path) -> None:
    authority.init(tmp_path / "authority", "Ministry")
    signed = Signed(tmp_path / "authority", make_signer(tmp_path, tmp_path / "authority", "tom", "agency"))
    folder = write_bundle(tmp_path / "bundle", "1.0", signed.signer)
    authority.revoke(signed.home, "tom", "signer", now=datetime.now(UTC))
    with pytest.raises(RefusedError, match="revoked"):
        check(folder, signed.root, signed.fingerprint, signed.home / "crl.pem")


def test_an_institution_cannot_sign_a_bundle(tmp_path: Path) -> None:
    """Its certificate is the authority's too."""
    folder = tmp_path / "authority"
    make_institution(Authority(), folder, "hospital-1")
    key = key_from_pem((folder / "key.pem").read_bytes(), "key.pem")
    signer = SigningKey(
        SignerIdentity("eve", "hospital-1", "0" * 64, 1), to_der(load_certificate(folder / "cert.pem")), key
    )
    forged, known = write_bundle(tmp_path / "bundle", "1.0", signer), Signed(folder, signer)
    with pytest.raises(RefusedError, match="not that of a person who signs"):
        check(forged, known.root, known.fingerprint, None)


def test_a_bundle_for_another_python_is_refused(tmp_path: Path, signed: Signed) -> None:
    folder = write_bundle(tmp_path / "bundle", "1.0", signed.signer)
    values = {**json.loads((folder / "manifest.json").read_bytes()), "python": "3.9"}
    put_signed(folder, json.dumps(values).encode(), signed.signer)
    with pytest.raises(RefusedError, match=r"made for Python 3\.9"):
        check(folder, signed.root, signed.fingerprint, None)


def test_an_institution_gets_what_it_needs_and_torch_without_cuda() -> None:
    versions = locked("institution")
    assert versions["torch"] == "2.13.0+cpu"
    assert {"flwr", "opacus", "cryptography", "grpcio"} <= set(versions)
    assert not {"sovfed", "mlflow", "ray", "pytest", "cyclonedx-bom"} & set(versions)
    assert not [name for name in versions if name.startswith(("nvidia-", "triton"))]
    assert "mlflow" in locked("agency")
    assert "psycopg" in locked("institution", ("postgresql",))
    assert lock_text({"a": "1", "b": "2"}) == "a==1\nb==2\n"


def test_what_is_not_installed_here_is_told() -> None:
    with pytest.raises(ConfigError, match=r"sovfed-bench.* is not installed here"):
        locked("institution", ("bench",))  # which a checkout has without


@pytest.mark.parametrize(("name", "outcome"), [("sovfed", "sovfed-1.0-py3-none-any.whl"), ("other", "no checkout of")])
def test_a_checkout_is_built_whatever_its_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, outcome: str
) -> None:
    project = tmp_path / "six"  # which pip would fetch from the index, and build
    project.mkdir()
    (project / "pyproject.toml").write_text(
        f'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "{name}"\n'
        'version = "1.0"\n'
    )
    (project / "backend.py").write_text(BACKEND.format(name=name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "wheels").mkdir()
    if name != "sovfed":
        with pytest.raises(ConfigError, match=outcome):
            build_wheel(Path("six"), tmp_path / "wheels")
    else:
        assert build_wheel(Path("six"), tmp_path / "wheels").name == outcome
