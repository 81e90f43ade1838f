"""Certificates, requests and revocation lists as somebody else wrote them: wholly readable, or an IdentityError.

The library reads a part when one asks for it, and its errors have no base in common: a version that there is not is no
ValueError, nor is an extension that stands twice. So every part that anybody looks at is read here, and only here.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from sovfed.federation.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Iterator

UNREADABLE: Final = (
    ValueError, TypeError, LookupError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion,
    x509.DuplicateExtension, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType, x509.AttributeNotFound,
)  # fmt: skip


def certificate_of(der: bytes, where: str = "certificate") -> x509.Certificate:
    """The certificate that `der` spells. Raises IdentityError, naming `where`."""
    with reading(f"{where}: not a certificate that can be read"):
        return _whole(x509.load_der_x509_certificate(der))


def certificates_of(pem: bytes, where: str) -> list[x509.Certificate]:
    """The certificates in `pem`, at least one. Raises IdentityError, naming `where`."""
    with reading(f"{where}: not a certificate that can be read (PEM)"):
        return [_whole(certificate) for certificate in x509.load_pem_x509_certificates(pem)]


def request_of(pem: bytes) -> x509.CertificateSigningRequest:
    """The signing request in `pem`. Raises IdentityError."""
    with reading("signing request: not readable as PEM PKCS#10"):
        request = x509.load_pem_x509_csr(pem)
        _ = request.subject, request.extensions, request.public_key(), request.attributes, request.is_signature_valid
        return request


def revocations_of(pem: bytes, where: str) -> x509.CertificateRevocationList:
    """The revocation list in `pem`. Raises IdentityError, naming `where`."""
    with reading(f"{where}: expected a PEM revocation list"):
        crl = x509.load_pem_x509_crl(pem)
        _ = crl.issuer, crl.last_update_utc, crl.next_update_utc, crl.extensions
        for entry in crl:
            _ = entry.serial_number, entry.revocation_date_utc, entry.extensions
        _require_one_spelling(crl)
        return crl


@contextmanager
def reading(error: str) -> Iterator[None]:
    """Raise IdentityError(`error`) for whatever the library says of input that it cannot read."""
    try:
        yield
    except UNREADABLE as reason:
        raise IdentityError(error) from reason


def _whole(certificate: x509.Certificate) -> x509.Certificate:
    _ = certificate.version, certificate.subject, certificate.issuer, certificate.extensions, certificate.public_key()
    _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.signature_hash_algorithm
    if certificate.serial_number <= 0:
        raise ValueError("a serial number below one")
    _require_one_spelling(certificate)
    return certificate


def _require_one_spelling(signed: x509.Certificate | x509.CertificateRevocationList) -> None:
    """Raise ValueError where the signature is said to end with unused bits, which changes nothing but a digest.

    The byte before the signature says how many; the library takes any number, if those bits are zero.
    """
    if signed.public_bytes(serialization.Encoding.DER)[-len(signed.signature) - 1] != 0:
        raise ValueError("a signature with unused bits")
