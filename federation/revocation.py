"""Revocation lists: which of the authority's certificates hold no more, and whether a list itself still does.

A list is complete by itself, numbered upwards, and holds until its nextUpdate (RFC 5280, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.federation.certificates import CLOCK_SKEW, certificate_fingerprint, label_of
from sovfed.federation.decoded import reading, revocations_of
from sovfed.federation.errors import IdentityError, NotValidNowError
from sovfed.federation.files import read_bounded

END: Final = b"-----END X509 CRL-----\n"


def check_crl(crl: x509.CertificateRevocationList, root: x509.Certificate, now: datetime) -> int:
    """The number of `crl`. Raises IdentityError unless the root signed it and `now` is before its nextUpdate."""
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or crl.issuer != root.subject:
        raise IdentityError("revocation list: issued by another authority")
    known, number = {x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid}, crl_number(crl)
    if any(extension.oid not in known for extension in crl.extensions):
        raise IdentityError(f"revocation list {number}: not complete by itself")
    if not crl.is_signature_valid(key):
        raise IdentityError(f"revocation list {number}: not signed by the authority's key")
    expires = crl.next_update_utc
    if expires is None or now >= expires:
        raise NotValidNowError(
            f"revocation list {number}: stale since {expires}, now {now:%F %T}; `authority crl` renews it, unless this "
            f"machine's clock is wrong"
        )
    if now < crl.last_update_utc - CLOCK_SKEW:
        raise NotValidNowError(
            f"revocation list {number}: not valid before {crl.last_update_utc}, and this machine's clock says "
            f"{now:%F %T} UTC: it is wrong, or was when the list was made"
        )
    return number


def check_revoked(
    certificate: x509.Certificate, crl: x509.CertificateRevocationList, root: x509.Certificate, now: datetime
) -> None:
    """Raises IdentityError where `crl`, which must hold now, names `certificate`."""
    check_crl(crl, root, now)
    entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    if entry is not None:
        raise IdentityError(f"{label_of(certificate)}: revoked on {entry.revocation_date_utc:%F}")


def lists_of(pem: bytes, roots: Sequence[x509.Certificate], now: datetime) -> dict[str, x509.CertificateRevocationList]:
    """The revocation lists in `pem` that hold, by the fingerprint of the root that signed each, in the roots' order.

    One of a root that is not trusted here (any more, or yet) is left out. Raises IdentityError if one does not hold, or
    none is left.
    """
    lists, held = parse_crls(pem, "revocation list"), {}
    for root in roots:
        if (crl := crl_of(root, lists)) is not None:
            check_crl(crl, root, now)
            held[certificate_fingerprint(root)] = crl
    if not held:
        check_crl(lists[0], roots[0], now)
        raise IdentityError("revocation list: of no root that is trusted here")
    return held


def crl_of(
    root: x509.Certificate, lists: Sequence[x509.CertificateRevocationList]
) -> x509.CertificateRevocationList | None:
    """The newest of `lists` that `root` signed, stale or not; None if it signed none. Raises IdentityError."""
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    signed = [crl for crl in lists if crl.issuer == root.subject and crl.is_signature_valid(key)]
    return max(signed, key=crl_number, default=None)


def parse_crls(pem: bytes, where: str) -> list[x509.CertificateRevocationList]:
    """The lists in `pem`, at least one: two while one root takes over from another. IdentityError names `where`."""
    return [parse_crl(part + END, where) for part in pem.split(END)[:-1]] or [parse_crl(pem, where)]


def parse_crl(pem: bytes, where: str) -> x509.CertificateRevocationList:
    """The revocation list in `pem`; IdentityError names `where`."""
    return revocations_of(pem, where)


def load_crl(path: Path) -> x509.CertificateRevocationList:
    """The revocation list in the PEM file `path`; raises IdentityError."""
    return parse_crl(read_bounded(path), str(path))


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """The number of `crl`, which grows with every list; raises IdentityError if it has none."""
    with reading("revocation list: without a number"):
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
