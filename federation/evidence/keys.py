"""The keys of a home's log, and the voucher by which its certificate says that they are its own.

A home, of the agency or of an institution, has two Ed25519 keys: one signs its log's checkpoints (`audit-key/`, which
an institution's gateway cannot open), the other the checkpoints of others (`witness/`). `audit/keys.json` is the
voucher: both public keys, signed by the key of the certificate that was in place when they were made, or, once the
authority has another root, of the first under that: the former root is given up, and the log goes on.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sovfed.federation.certificates import InstitutionNames, ServerNames, key_from_pem, read_names, same_issuer, to_der
from sovfed.federation.decoded import certificate_of
from sovfed.federation.errors import EvidenceError, IdentityError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.evidence.notes import COSIGNATURE, LOG, NoteKey, public, read_key
from sovfed.federation.files import private_directory, read_private, sync_folder, write_private
from sovfed.federation.identity import load_certificate, parse_certificate, read_pair, verify_lapsed
from sovfed.federation.schema import bind, bounded
from sovfed.federation.text import json_object

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOG_FOLDER: Final = "audit"
KEY_FOLDER: Final = "audit-key"
WITNESS_FOLDER: Final = "witness"
FOLDERS: Final = (LOG_FOLDER, KEY_FOLDER, WITNESS_FOLDER)
VOUCHER: Final = "audit/keys.json"
LOG_KEY: Final = "audit-key/log.pem"
WITNESS_KEY: Final = "witness/witness.pem"
DOMAIN: Final = b"sovfed audit keys 1\0"
INSTITUTION: Final = "sovfed/institution/"
AGENCY: Final = "sovfed/agency/"
AS_WITNESS: Final = "/witness"


@dataclass(frozen=True)
class Voucher:
    """The public keys of one log and its witness, which the holder of `certificate` (DER, base64) signed for."""

    log: str = bounded(low=1, high=512)
    witness: str = bounded(low=1, high=512)
    certificate: str = bounded(low=1, high=16_384)
    signature: str = bounded("", 0, 512)

    @property
    def log_key(self) -> NoteKey:
        """The key of the log; its name is the log's origin."""
        return read_key(self.log)

    @property
    def witness_key(self) -> NoteKey:
        """The key that cosigns logs of others."""
        return read_key(self.witness)

    @property
    def origin(self) -> str:
        """Whose log it is."""
        return self.log_key.name

    def to_bytes(self) -> bytes:
        """Its one spelling."""
        return canonical(asdict(self))

    def check(self, roots: Sequence[x509.Certificate]) -> str:
        """The origin of the log, once certificate, names and signature hold. Raises IdentityError."""
        der = _base64(self.certificate, "certificate")
        origin = _origin(verify_lapsed(der, roots))
        if self.origin != origin or (self.witness_key.name, self.witness_key.kind) != (
            origin + AS_WITNESS,
            COSIGNATURE,
        ):
            raise EvidenceError(f"keys of {self.origin}: their certificate is that of {origin}")
        check_ecdsa(
            der, _base64(self.signature, "signature"), DOMAIN + replace(self, signature="").to_bytes(), self.origin
        )
        return origin


def read_voucher(data: bytes) -> Voucher:
    """The voucher that `data` spells. Raises EvidenceError if it is `to_bytes` of none."""
    where = "keys of a log"
    voucher = bind(Voucher, json_object(data, where, EvidenceError, 1 << 15), where, EvidenceError)
    if voucher.to_bytes() != data:
        raise EvidenceError("keys of a log: not in the spelling that is written")
    return voucher


def establish(home: Path) -> Voucher | None:
    """The voucher of the home's log, with its keys made if it has none; None before the home has a certificate."""
    if not (home / "identity" / "cert.pem").exists():
        return None
    for folder in FOLDERS:
        private_directory(home / folder)
    path = home / VOUCHER
    if not path.exists():
        for name in (LOG_KEY, WITNESS_KEY):
            _make(home / name)
        write_private(path, _vouch(home).to_bytes())
    voucher = read_voucher(read_private(path))
    if _is_of_former_root(home, voucher):
        voucher = _vouch(home)
        write_private(path, voucher.to_bytes())
    return voucher


def load_key(path: Path) -> Ed25519PrivateKey:
    """The key in `path`. Raises IdentityError."""
    try:
        key = serialization.load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError) as error:
        raise EvidenceError(f"{path}: not a private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise EvidenceError(f"{path}: not an Ed25519 key")
    return key


def check_ecdsa(der: bytes, signature: bytes, message: bytes, whose: str) -> None:
    """Raise EvidenceError unless the key of the certificate `der` has signed `message`."""
    try:
        key = certificate_of(der, whose).public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise EvidenceError(f"{whose}: not an elliptic-curve key")
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except IdentityError as error:
        raise EvidenceError(str(error)) from error
    except InvalidSignature as error:
        raise EvidenceError(f"{whose}: the signature does not hold") from error


def sign_ecdsa(home: Path, message: bytes) -> tuple[bytes, bytes]:
    """The signature of `message` by the home's own certificate, and that certificate (DER)."""
    key_pem, pem = read_pair(home / "identity")
    key = key_from_pem(key_pem, "key.pem")
    signature = key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return signature, to_der(parse_certificate(pem, "cert.pem"))


def own_origin(home: Path) -> str:
    """The name of the home's log."""
    names = load_certificate(home / "identity" / "cert.pem").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return _origin(read_names(names.value))


def _is_of_former_root(home: Path, voucher: Voucher) -> bool:
    """Whether the home's certificate is of another root than the voucher's, and of the same name."""
    former = certificate_of(_base64(voucher.certificate, "certificate"))
    return (
        not same_issuer(former, load_certificate(home / "identity" / "cert.pem")) and own_origin(home) == voucher.origin
    )


def _vouch(home: Path) -> Voucher:
    origin = own_origin(home)
    log = public(origin, LOG, load_key(home / LOG_KEY))
    witness = public(origin + AS_WITNESS, COSIGNATURE, load_key(home / WITNESS_KEY))
    der = to_der(load_certificate(home / "identity" / "cert.pem"))
    draft = Voucher(str(log), str(witness), base64.b64encode(der).decode("ascii"))
    signature, _ = sign_ecdsa(home, DOMAIN + draft.to_bytes())
    return replace(draft, signature=base64.b64encode(signature).decode("ascii"))


def _make(path: Path) -> None:
    """Make a key, on disk before anything says that it is the log's; unless there is one: another may have been first.

    A draft that was left by one that died is in nobody's way: it has a name of its own.
    """
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_suffix(f".{secrets.token_hex(8)}")
    write_private(draft, pem)
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    sync_folder(path.parent)


def _origin(names: object) -> str:
    if isinstance(names, InstitutionNames):
        return INSTITUTION + names.institution
    if isinstance(names, ServerNames):
        return AGENCY + names.hosts[0]
    raise IdentityError("certificate: a person's, who has no log")


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise EvidenceError(f"keys of a log: {what} is not base64") from error
