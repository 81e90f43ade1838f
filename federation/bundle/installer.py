"""Installs, upgrades and takes back a bundle on a machine without a network: Python's own library and openssl alone.

    python3 -I install.py check    --root root.pem --fingerprint 5f2c…     who signed it, and that nothing was changed
    python3 -I install.py install  --root root.pem --fingerprint 5f2c… --prefix /opt/sovfed
    python3 -I install.py rollback --prefix /opt/sovfed                    the version before, as it was

Each version has a virtual environment of its own in PREFIX/versions; PREFIX/current is the one that counts, and changes
in one step once the new one works. Home folders, with keys, ledgers and journals, are elsewhere and stay as they are.
This file is federation/bundle/installer.py. It cannot vouch for itself: compare `sha256sum install.py` with what you
were told by who made the bundle.
"""

import sys

if __name__ == "__main__" and not sys.flags.isolated:
    del sys.path[0]  # what lies beside this file is not checked yet: no module is taken from there, not even __future__

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import venv
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
DOMAIN = b"sovfed bundle 1\0"  # what is signed begins with this word, so no other signature stands for it
ROLE = b"publisher\0"
KEPT = 3  # versions, the one in use among them


class RefusedError(Exception):
    """What is wrong with the bundle or this machine."""


def check(folder: Path, root: Path, fingerprint: str, crl: Path | None) -> dict[str, Any]:
    """The manifest of the bundle in `folder`, once its signature and every file hold. Raises RefusedError."""
    manifest = (folder / MANIFEST).read_bytes()
    _check_signature(folder, manifest, root, fingerprint, crl)
    values: dict[str, Any] = json.loads(manifest)
    digests: dict[str, str] = values["files"]
    listed = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    if links := [str(path.relative_to(folder)) for path in listed if path.is_symlink() or not path.is_file()]:
        raise RefusedError(f"no plain file: {links[:5]}; what a link leads to may change once it was checked")
    files = {str(path.relative_to(folder)) for path in listed} - {MANIFEST, SIGNATURE}
    if files != set(digests):
        raise RefusedError(f"not what was signed: {sorted(files ^ set(digests))[:5]}")
    for name, digest in digests.items():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise RefusedError(f"{name}: not the bytes that were signed")
    ours = (f"{sys.version_info.major}.{sys.version_info.minor}", sysconfig.get_platform().replace("-", "_"))
    if (values["python"], values["platform"]) != (ours[0], ours[1].replace(".", "_")):
        raise RefusedError(f"made for Python {values['python']} on {values['platform']}; this is {' on '.join(ours)}")
    return values


def _check_signature(folder: Path, manifest: bytes, root: Path, fingerprint: str, crl: Path | None) -> None:
    shown = _openssl("x509", "-in", str(root), "-outform", "DER")
    if hashlib.sha256(shown).hexdigest() != fingerprint.lower().replace(":", ""):
        raise RefusedError(f"{root}: its fingerprint is {hashlib.sha256(shown).hexdigest()}, expected {fingerprint}")
    signature = json.loads((folder / SIGNATURE).read_bytes())
    with tempfile.TemporaryDirectory() as name:
        names = ("root.pem", "leaf.pem", "key.pem", "signed", "signature")
        pinned, leaf, key, signed, made = (Path(name) / part for part in names)
        pinned.write_bytes(
            _openssl("x509", "-inform", "DER", given=shown)
        )  # the one whose fingerprint it is, of several
        der = base64.b64decode(signature["certificate"])
        leaf.write_bytes(_openssl("x509", "-inform", "DER", given=der))
        listed = ["-crl_check", "-CRLfile", str(crl)] if crl else []
        _openssl("verify", "-x509_strict", "-CAfile", str(pinned), *listed, str(leaf))
        uses = _openssl("x509", "-in", str(leaf), "-noout", "-ext", "extendedKeyUsage,subjectAltName").decode()
        if "Code Signing" not in uses or "urn:sovfed:signer:" not in uses:
            raise RefusedError("the certificate is not that of a person who signs")
        key.write_bytes(_openssl("x509", "-in", str(leaf), "-noout", "-pubkey"))
        signed.write_bytes(DOMAIN + ROLE + manifest)
        made.write_bytes(base64.b64decode(signature["signature"]))
        _openssl("dgst", "-sha256", "-verify", str(key), "-signature", str(made), str(signed))
        print("signed by", " ".join(word for word in uses.replace(",", " ").split() if word.startswith("URI:")))


def _openssl(*arguments: str, given: bytes = b"") -> bytes:
    """What openssl prints, which trusts none of the authorities that this machine trusts. Raises RefusedError."""
    alone = {**os.environ, "SSL_CERT_DIR": os.devnull, "SSL_CERT_FILE": os.devnull}
    argv = ["openssl", *arguments]
    try:
        done = subprocess.run(argv, input=given, capture_output=True, check=False, env=alone)
    except FileNotFoundError:
        raise RefusedError("there is no openssl on this machine, and without it no signature can be checked") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise RefusedError(f"the signature does not hold (openssl {arguments[0]}): {said}")
    return done.stdout


def install(folder: Path, values: dict[str, Any], prefix: Path, *, older: bool = False) -> Path:
    """A working environment of the bundle, which `prefix`/current names from now on.

    Raises RefusedError, also for another role's, and for a version before the one in use unless `older`: its signature
    holds for ever.
    """
    named = (prefix / "current").resolve().name if (prefix / "current").is_symlink() else ""
    used, _, rest = named.partition("-")
    role = rest.rpartition("-")[0]
    if role and role != values["role"]:
        raise RefusedError(f"{prefix} is of an {role}, which may need more; an {values['role']} has another --prefix")
    if not older and _order(values["version"]) < _order(used):
        raise RefusedError(f"version {values['version']} is older than {used} in use; --older if that is meant")
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]
    target = prefix / "versions" / f"{values['version']}-{values['role']}-{digest}"
    if not (target / "installed").exists():
        shutil.rmtree(target, ignore_errors=True)  # one that was interrupted
        target.parent.mkdir(parents=True, exist_ok=True)
        venv.create(target, with_pip=True, symlinks=True)
        python = target / "bin" / "python"
        ours = next((folder / "wheels").glob("sovfed-*.whl"))
        offline = ["--no-index", "--no-deps", "--find-links", str(folder / "wheels")]
        _run([python, "-I", "-m", "pip", "--quiet", "install", *offline, "-r", str(folder / "lock.txt"), str(ours)])
        _run([python, "-I", "-m", "pip", "--quiet", "check"])
        _run([python, "-I", "-m", "sovfed", "--version"])
        shutil.copy(folder / "sbom.json", target)
        (target / "installed").touch()
    _switch(prefix, target)
    _remove_old(prefix)
    return target


def _order(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _run(argv: list[str | Path]) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RefusedError(f"{' '.join(map(str, argv[2:6]))}: {done.stderr.strip() or done.stdout.strip()}")


def _switch(prefix: Path, target: Path) -> None:
    """`prefix`/current names `target`, in one step, and `prefix`/previous what it named before."""
    current = prefix / "current"
    before = current.resolve() if current.is_symlink() else None
    if before == target.resolve():
        return
    if before is not None and before.exists():
        _link(prefix / "previous", before)
    _link(current, target)


def _link(link: Path, target: Path) -> None:
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(os.path.relpath(target, link.parent))
    fresh.replace(link)


def _remove_old(prefix: Path) -> None:
    named = {link.resolve() for link in (prefix / "current", prefix / "previous") if link.is_symlink()}
    versions = sorted((prefix / "versions").iterdir(), key=lambda path: path.stat().st_mtime)
    for path in versions[: max(0, len(versions) - KEPT)]:
        if path.resolve() not in named:
            shutil.rmtree(path)


def rollback(prefix: Path) -> Path:
    """`prefix`/current is the version before again. Raises RefusedError if there is none."""
    previous = prefix / "previous"
    if not previous.is_symlink() or not previous.resolve().exists():
        raise RefusedError(f"{prefix}: no version before this one is kept")
    target = previous.resolve()
    _switch(prefix, target)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked; exit code 1 with a line of why not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("check", "install", "rollback"))
    parser.add_argument("--root", type=Path, help="the authority's root certificate, root.pem")
    parser.add_argument("--fingerprint", default="", help="the root's, as the authority itself gave it")
    parser.add_argument("--crl", type=Path, help="the authority's revocation list, if you have it")
    parser.add_argument("--prefix", type=Path, default=Path("/opt/sovfed"), help="default: /opt/sovfed")
    parser.add_argument("--older", action="store_true", help="install a version older than the one in use")
    options = parser.parse_args(arguments)
    if options.what != "rollback" and not (options.root and options.fingerprint):
        parser.error("--root and --fingerprint say whose signature counts")
    try:
        if options.what == "rollback":
            print("current:", rollback(options.prefix))
            return 0
        folder = Path(__file__).resolve().parent
        values = check(folder, options.root, options.fingerprint, options.crl)
        print(f"sovfed {values['version']} for an {values['role']}: every file holds")
        if options.what == "install":
            print("current:", install(folder, values, options.prefix, older=options.older))
    except (RefusedError, OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
