"""Renewals that need nobody: a request endorsed by the key that is certified now, so that the authority can sign it.

The agency carries the requests and is not believed: it can neither make an endorsement nor change what was endorsed.
A renewal keeps all names; it may bring another key.
"""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import SubjectAlternativeName

from sovfed.federation.certificates import CLOCK_SKEW, Names, check_csr, read_names
from sovfed.federation.decoded import reading
from sovfed.federation.errors import IdentityError
from sovfed.federation.identity import parse_certificate
from sovfed.federation.schema import bind, bounded
from sovfed.federation.text import json_object, to_base64

if TYPE_CHECKING:
    from cryptography import x509

LABEL: Final = b"sovfed renewal 1\n"
MAX_BYTES: Final = 32_768
KEY_DAYS: Final = 270  # an institution then makes a new key; the authority certifies none for longer than a year
MAX_KEY_DAYS: Final = 365


@dataclass(frozen=True)
class Renewal:
    """A signing request, the certificate in force, and its key's signature over the request."""

    csr: str = bounded(low=1, high=8192, lines=True, doc="PEM")
    certificate: str = bounded(low=1, high=8192, lines=True, doc="PEM")
    endorsement: str = bounded(low=1, high=512, doc="base64, ECDSA with SHA-256")

    def to_json(self) -> bytes:
        """The file's text."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"


def endorse(key: ec.EllipticCurvePrivateKey, csr: bytes) -> bytes:
    """The signature of `key`, which is certified now, over the request `csr` (PEM)."""
    return key.sign(LABEL + csr, ec.ECDSA(hashes.SHA256()))


def make_renewal(csr: bytes, certificate: bytes, endorsement: bytes) -> Renewal:
    """The renewal of `certificate` by `csr` (both PEM), once it holds. Raises IdentityError."""
    if not csr.isascii():  # PEM may stand among anything
        raise IdentityError("renewal: the request is no plain PEM")
    renewal = Renewal(csr.decode("ascii"), certificate.decode("ascii"), to_base64(endorsement))
    check_renewal(renewal)
    return renewal


def read_renewal(data: bytes) -> Renewal:
    """The renewal in a file. Raises IdentityError if it is none; `check_renewal` tells whether it holds."""
    return bind(Renewal, json_object(data, "renewal", IdentityError, MAX_BYTES), "renewal", IdentityError)


def check_renewal(renewal: Renewal) -> tuple[Names, x509.Certificate]:
    """Names and certificate of a renewal whose endorsement holds. Whether the certificate does is not looked at.

    Raises IdentityError unless request and certificate are for the same names and the latter's key endorsed the former.
    """
    certificate = parse_certificate(renewal.certificate.encode(), "renewal's certificate")
    names, _ = check_csr(renewal.csr.encode())
    if names != names_of(certificate):
        raise IdentityError("renewal: the request is for other names than the certificate")
    key = certificate.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("renewal: not an elliptic-curve key")
        signature = base64.b64decode(renewal.endorsement, validate=True)
        key.verify(signature, LABEL + renewal.csr.encode(), ec.ECDSA(hashes.SHA256()))
    except (ValueError, InvalidSignature) as error:
        raise IdentityError("renewal: not endorsed by the key that is certified now") from error
    return names, certificate


def names_of(certificate: x509.Certificate) -> Names:
    """Whom the certificate is for. Raises IdentityError."""
    with reading("certificate: without alternative names"):
        alternatives = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    return read_names(alternatives)


def is_due(certificate: x509.Certificate, now: datetime | None = None) -> bool:
    """Whether half of the certificate's life is over."""
    return (now or datetime.now(UTC)) >= due_at(certificate)


def due_at(certificate: x509.Certificate) -> datetime:
    """When half of the certificate's life is over."""
    end = certificate.not_valid_after_utc
    return end - (end - certificate.not_valid_before_utc - CLOCK_SKEW) / 2


def is_old(made: datetime, now: datetime | None = None) -> bool:
    """Whether a key `made` then should give way to a new one."""
    return (now or datetime.now(UTC)) - made > timedelta(days=KEY_DAYS)
