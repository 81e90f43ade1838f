"""Who vouches for an archive: signatures over its manifest, by people whom the federation's authority certified.

What is signed begins with a word for the archive and the role, so no signature of sovfed stands for another. A
signature that does not hold, or whose certificate is not the authority's, makes the whole archive refused: somebody
changed it. One whose certificate has ended or was revoked counts for nobody.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.federation.decoded import certificate_of, reading
from sovfed.federation.errors import ConfigError, IdentityError
from sovfed.federation.identity import issuer_of, verify_signer
from sovfed.federation.schema import bind, bounded, choice
from sovfed.federation.text import from_base64, json_object, to_base64

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.federation.identity import SignerIdentity, Trust

Role: TypeAlias = Literal["publisher", "reviewer"]
PUBLISHER: Final[Role] = "publisher"
REVIEWER: Final[Role] = "reviewer"
DOMAIN: Final = b"sovfed task archive 1\0"
MAX_BYTES: Final = 8192


@dataclass(frozen=True)
class Signature:
    """A signature of a manifest, in base64 with the certificate of who made it."""

    certificate: str = bounded(low=1, high=MAX_BYTES, doc="DER")
    signature: str = bounded(low=1, high=256)
    role: str = choice(REVIEWER, (PUBLISHER, REVIEWER))

    def to_bytes(self) -> bytes:
        """Its one spelling."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1).encode() + b"\n"


def sign(
    manifest: bytes, role: Role, certificate: bytes, key: ec.EllipticCurvePrivateKey, *, domain: bytes = DOMAIN
) -> Signature:
    """The signature of `manifest` in `role`; equal ones for equal arguments (RFC 6979)."""
    signature = key.sign(_said(manifest, role, domain), ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return Signature(to_base64(certificate), to_base64(signature), role)


def read_signature(data: bytes, where: str) -> Signature:
    """The signature that `data` spells. Raises ConfigError if it is `to_bytes` of none."""
    signature = bind(Signature, json_object(data, where, ConfigError, 2 * MAX_BYTES), where)
    if signature.to_bytes() != data:
        raise ConfigError(f"{where}: not in the spelling that is written")
    from_base64(signature.certificate, where, ConfigError)
    from_base64(signature.signature, where, ConfigError)
    return signature


def certified(signature: Signature, where: str) -> tuple[str, str]:
    """Person and organisation that the certificate names, whoever signed that. Raises IdentityError."""
    from sovfed.federation.certificates import SignerNames, read_names

    certificate = certificate_of(from_base64(signature.certificate, where, ConfigError), where)
    with reading(f"{where}: the certificate names nobody"):
        names = read_names(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    if not isinstance(names, SignerNames):
        raise IdentityError(f"{where}: the certificate is not that of a person who signs tasks")
    return names.person, names.organisation


def check_signature(
    signature: Signature, manifest: bytes, trust: Trust, where: str, *, domain: bytes = DOMAIN
) -> tuple[SignerIdentity, str]:
    """Who made `signature` of `manifest`, and why it counts no longer ("" if it does). Raises IdentityError."""
    der = from_base64(signature.certificate, where, ConfigError)
    check_key(signature, manifest, where, domain=domain)
    try:
        return trust.verify_signer(der), ""
    except IdentityError as error:
        trust.check()  # without a revocation list that holds nothing can be told
        return _lapsed(der, trust, error), str(error)


def check_key(signature: Signature, manifest: bytes, where: str, *, domain: bytes = DOMAIN) -> None:
    """Raise IdentityError unless the key of the certificate that `signature` shows has made it."""
    der = from_base64(signature.certificate, where, ConfigError)
    key = certificate_of(der, where).public_key()
    try:
        verify: Callable[..., None] = key.verify  # type: ignore[union-attr]
        made = from_base64(signature.signature, where, ConfigError)
        verify(made, _said(manifest, signature.role, domain), ec.ECDSA(hashes.SHA256()))
    except (ValueError, TypeError, AttributeError, InvalidSignature) as error:
        raise IdentityError(f"{where}: not the signature of this manifest: one of both was changed") from error


def _lapsed(der: bytes, trust: Trust, error: IdentityError) -> SignerIdentity:
    """The signer of a certificate that held until it ended or was revoked; raises `error` if it never did."""
    try:
        end = certificate_of(der).not_valid_after_utc
        return verify_signer(der, issuer_of(der, trust.roots), end - timedelta(seconds=1))
    except (IdentityError, ValueError) as problem:
        raise error from problem


def _said(manifest: bytes, role: str, domain: bytes = DOMAIN) -> bytes:
    return domain + role.encode() + b"\0" + manifest
