"""The folder of a person who signs tasks: key.pem (0600), cert.pem, and the authority's root.pem and crl.pem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.federation.archive.signing import sign
from sovfed.federation.certificates import (
    SignerNames,
    create_csr,
    create_key,
    key_fingerprint,
    key_from_pem,
    key_to_pem,
    to_der,
    to_pem,
)
from sovfed.federation.errors import ConfigError, IdentityError
from sovfed.federation.files import private_directory, read_private, write_atomic, write_private
from sovfed.federation.identity import Trust, load_certificate, parse_certificate
from sovfed.federation.identity import verify_signer as verify
from sovfed.federation.revocation import lists_of

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

    from sovfed.federation.archive.signing import Role, Signature
    from sovfed.federation.identity import SignerIdentity

KEY: Final = "key.pem"
REQUEST: Final = "request.csr"


@dataclass(frozen=True)
class SigningKey:
    """A person's key with its certificate (DER) and who that names."""

    identity: SignerIdentity
    certificate: bytes
    key: ec.EllipticCurvePrivateKey

    def sign(self, manifest: bytes, role: Role) -> Signature:
        """The signature of `manifest`."""
        return sign(manifest, role, self.certificate, self.key)


def create_signer(home: Path, person: str, organisation: str) -> tuple[Path, str]:
    """Make a key in `home`; the request to be certified, and the key's fingerprint. ConfigError if it has one."""
    private_directory(home)
    if (home / KEY).exists():
        raise ConfigError(f"{home} holds a key already; choose another --home")
    key = create_key()
    request = to_pem(create_csr(key, SignerNames(person, organisation)))
    write_private(home / KEY, key_to_pem(key))
    write_atomic(home / REQUEST, request)
    return home / REQUEST, key_fingerprint(key.public_key())


def install_signer(home: Path, certificate: bytes, root: bytes, crl: bytes, now: datetime) -> SignerIdentity:
    """Put certificate, root and revocation list (PEM) into `home` once they hold. Raises IdentityError."""
    leaf, authority = parse_certificate(certificate, "certificate"), parse_certificate(root, "root")
    lists_of(crl, (authority,), now)
    identity = verify(to_der(leaf), authority, now)
    if leaf.public_key() != _key(home).public_key():
        raise IdentityError(f"the certificate is for another key than {home / KEY}")
    for name, content in (("cert.pem", certificate), ("root.pem", root), ("crl.pem", crl)):
        write_atomic(home / name, content)
    return identity


def load_signer(home: Path) -> SigningKey:
    """The key in `home`. Raises IdentityError unless its certificate holds now."""
    if not (home / "cert.pem").exists():
        raise IdentityError(f"{home} holds no certificate; `sovfed task signer --help` tells how to get one")
    certificate = to_der(load_certificate(home / "cert.pem"))
    return SigningKey(Trust(home).verify_signer(certificate), certificate, _key(home))


def _key(home: Path) -> ec.EllipticCurvePrivateKey:
    return key_from_pem(read_private(home / KEY), str(home / KEY))
