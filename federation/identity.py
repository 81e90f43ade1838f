"""Who is at the other end: what a peer's certificate must show, and the files an identity consists of.

A home's `identity/` folder holds root.pem and crl.pem (from the authority) and cert.pem and key.pem (its own; key.pem
is 0600 and never leaves). `Trust` is the one place that says yes or no to a peer. It fails closed: no revocation list,
one that the root did not sign, older than one already seen, or past its nextUpdate, and nobody is trusted.

Chain, dates, key usage and path length are checked by cryptography's X.509 verifier (RFC 5280, CA/Browser profile);
names, the exact purpose and the revocation list are checked here. `federation/certificates.py` makes certificates.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from sovfed.federation.certificates import (
    CLOCK_SKEW,
    InstitutionNames,
    Names,
    ServerNames,
    SignerNames,
    check_csr,
    create_csr,
    create_key,
    create_root,
    key_fingerprint,
    key_from_pem,
    key_to_pem,
    make_crl,
    read_names,
    sign_csr,
    subject_of,
    to_der,
    to_pem,
)
from sovfed.federation.decoded import UNREADABLE, certificate_of, certificates_of, reading, revocations_of
from sovfed.federation.errors import IdentityError, NotValidNowError
from sovfed.federation.files import private_directory, read_bounded, read_private, write_atomic, write_private

__all__ = [
    "PeerIdentity", "ServerIdentity", "SignerIdentity", "Trust", "certificate_fingerprint", "check_crl", "check_csr",
    "create_csr", "create_key", "create_root", "crl_number", "install_crl", "issuer_of", "key_fingerprint",
    "key_from_pem", "key_to_pem", "lists_of", "load_certificate", "load_crl", "load_roots", "make_crl",
    "node_key_bytes", "node_key_digest", "parse_certificate", "parse_crl", "private_directory", "read_pair",
    "read_private", "sign_csr", "to_der", "to_pem", "verify_lapsed", "verify_peer", "verify_server", "verify_signer",
    "write_atomic", "write_private",
]  # fmt: skip

MAX_ROOTS: Final = 2
_CRL_END: Final = b"-----END X509 CRL-----\n"


@dataclass(frozen=True)
class PeerIdentity:
    """An institution whose certificate has been verified; `fingerprint` is SHA-256 (hex) of the DER certificate."""

    institution: str
    node_key_digest: str
    serial: int
    fingerprint: str


@dataclass(frozen=True)
class ServerIdentity:
    """The agency's server, verified likewise."""

    hosts: tuple[str, ...]
    serial: int
    fingerprint: str


@dataclass(frozen=True)
class SignerIdentity:
    """A person who publishes or reviews tasks, verified likewise; `key` is the fingerprint of the public key."""

    person: str
    organisation: str
    key: str
    serial: int

    def __str__(self) -> str:
        return f"{self.person} of {self.organisation}"


def verify_peer(
    cert_der: bytes, root: x509.Certificate, crl: x509.CertificateRevocationList, now: datetime
) -> PeerIdentity:
    """The institution that `cert_der` certifies. Raises IdentityError on anything that does not hold."""
    certificate, names = _read_leaf(cert_der, ExtendedKeyUsageOID.CLIENT_AUTH)
    if not isinstance(names, InstitutionNames):
        raise IdentityError(f"{_label(certificate)}: expected an institution's names")
    with _verifying(certificate, now):
        _policy(root, now).build_client_verifier().verify(certificate, [])
    _check_revoked(certificate, crl, root, now)
    return PeerIdentity(names.institution, names.node_key_digest, certificate.serial_number, _sha256(cert_der))


def verify_server(
    cert_der: bytes, root: x509.Certificate, crl: x509.CertificateRevocationList, now: datetime
) -> ServerIdentity:
    """The server that `cert_der` certifies. Raises IdentityError on anything that does not hold."""
    certificate, names = _read_leaf(cert_der, ExtendedKeyUsageOID.SERVER_AUTH)
    if not isinstance(names, ServerNames):
        raise IdentityError(f"{_label(certificate)}: expected a server's names")
    with _verifying(certificate, now):
        _policy(root, now).build_server_verifier(_host_name(names.hosts[0])).verify(certificate, [])
    _check_revoked(certificate, crl, root, now)
    return ServerIdentity(names.hosts, certificate.serial_number, _sha256(cert_der))


def verify_signer(cert_der: bytes, root: x509.Certificate, now: datetime) -> SignerIdentity:
    """The signer that `cert_der` certifies, revoked or not. Raises IdentityError on anything that does not hold.

    The chain is checked as that of any leaf, but for the extended key usage that TLS would ask for.
    """
    certificate, names = _read_leaf(cert_der, ExtendedKeyUsageOID.CODE_SIGNING)
    if not isinstance(names, SignerNames):
        raise IdentityError(f"{_label(certificate)}: not a signer's names")
    leaf = verification.ExtensionPolicy.webpki_defaults_ee().require_present(
        x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, None
    )
    authority = verification.ExtensionPolicy.webpki_defaults_ca()
    with _verifying(certificate, now):
        policy = _policy(root, now).extension_policies(ca_policy=authority, ee_policy=leaf)
        policy.build_client_verifier().verify(certificate, [])
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):  # the chain is the authority's, which signs no other
        raise IdentityError(f"{_label(certificate)}: not an elliptic-curve key")
    return SignerIdentity(names.person, names.organisation, key_fingerprint(key), certificate.serial_number)


def verify_lapsed(cert_der: bytes, roots: Sequence[x509.Certificate]) -> Names:
    """The names in a certificate of one of `roots` that held until it ended, whether it has, or was revoked, or not.

    What was signed while it held stays signed. Raises IdentityError.
    """
    root = issuer_of(cert_der, roots)
    shown = certificate_of(cert_der)
    end = shown.not_valid_after_utc - timedelta(seconds=1)
    with reading("certificate: an extension is missing"):
        purpose = shown.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    if ExtendedKeyUsageOID.CODE_SIGNING in purpose.value:
        raise IdentityError("certificate: a person's, expected an institution's or the agency's")
    certificate, names = _read_leaf(cert_der, next(iter(purpose.value)))
    policy = _policy(root, end)
    with _verifying(certificate, end):
        if isinstance(names, ServerNames):
            policy.build_server_verifier(_host_name(names.hosts[0])).verify(certificate, [])
        else:
            policy.build_client_verifier().verify(certificate, [])
    return names


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


class Trust:
    """Verifies peers against one home's roots and their revocation lists, re-read when a file changes.

    There are two roots while one takes over from the other (`federation/roots.py`); `root` is the newer one.
    """

    def __init__(self, identity: Path, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._files = (identity / "root.pem", identity / "crl.pem")
        self._clock = clock
        self._stamp: tuple[tuple[int, int, int], ...] = ()
        self._numbers: dict[str, int] = {}
        self.roots: tuple[x509.Certificate, ...] = ()
        self._lists: dict[str, x509.CertificateRevocationList] = {}
        self._fresh()

    @property
    def root(self) -> x509.Certificate:
        """The root that is trusted from now on."""
        return self.roots[0]

    @property
    def crl(self) -> x509.CertificateRevocationList:
        """Its revocation list, or that of the former root while it has none."""
        return next(iter(self._lists.values()))

    def verify(self, cert_der: bytes) -> PeerIdentity:
        """The institution behind `cert_der` at this moment; raises IdentityError."""
        return verify_peer(cert_der, *self._judges(cert_der), self._clock())

    def verify_server(self, cert_der: bytes) -> ServerIdentity:
        """The server behind `cert_der` at this moment; raises IdentityError."""
        return verify_server(cert_der, *self._judges(cert_der), self._clock())

    def verify_signer(self, cert_der: bytes) -> SignerIdentity:
        """The signer behind `cert_der` at this moment; raises IdentityError."""
        root, crl = self._judges(cert_der)
        signer = verify_signer(cert_der, root, self._clock())
        _check_revoked(certificate_of(cert_der), crl, root, self._clock())
        return signer

    def check(self) -> None:
        """Raises IdentityError when the revocation list is missing or stale, so that nobody can be trusted."""
        self._fresh()
        check_crl(
            self.crl, next(root for root in self.roots if certificate_fingerprint(root) in self._lists), self._clock()
        )

    def verify_auth_context(self, auth_context: Mapping[str, Iterable[bytes]]) -> PeerIdentity:
        """The institution at the other end of a gRPC call: pass `context.auth_context()`."""
        shown = list(auth_context.get("x509_pem_cert", ()))
        if len(shown) != 1:
            raise IdentityError(f"gRPC peer: {len(shown)} certificates, expected 1")
        certificate = certificates_of(shown[0], "gRPC peer")[0]
        return self.verify(certificate.public_bytes(serialization.Encoding.DER))

    def _judges(self, cert_der: bytes) -> tuple[x509.Certificate, x509.CertificateRevocationList]:
        """The root that signed `cert_der`, else the newer one, and its list."""
        self._fresh()
        root = issuer_of(cert_der, self.roots)
        crl = self._lists.get(certificate_fingerprint(root))
        if crl is None:
            raise IdentityError("certificate: of a root whose revocation list is not here yet")
        return root, crl

    def _fresh(self) -> None:
        stamp = tuple(_stamp_of(path) for path in self._files)
        if stamp == self._stamp:
            return
        roots = load_roots(self._files[0])
        lists = lists_of(read_bounded(self._files[1]), roots, self._clock())
        for print_, crl in lists.items():
            number, seen = crl_number(crl), self._numbers.get(print_, -1)
            if number < seen:
                raise IdentityError(f"{self._files[1]}: revocation list {number}, but {seen} was seen before")
            self._numbers[print_] = number
        self.roots, self._lists, self._stamp = roots, lists, stamp


def _stamp_of(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        missing = "no revocation list" if path.name == "crl.pem" else "missing or not readable"
        raise IdentityError(f"{path}: {missing}") from error
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def load_roots(path: Path) -> tuple[x509.Certificate, ...]:
    """The roots in the PEM file `path`, one, or two while one takes over from the other: the newer first."""
    roots = certificates_of(read_bounded(path), str(path))
    if not 1 <= len(roots) <= MAX_ROOTS:
        raise IdentityError(f"{path}: {len(roots)} certificates, expected one PEM certificate, or two")
    for root in roots:
        if root.issuer != root.subject:
            raise IdentityError(
                f"{path}: the certificate of {root.subject.rfc4514_string()}, not an authority's root (root.pem)"
            )
    return tuple(roots)


def issuer_of(cert_der: bytes, roots: Sequence[x509.Certificate]) -> x509.Certificate:
    """The one of `roots` that signed `cert_der`; the first if none did, which then refuses it."""
    if len(roots) == 1:
        return roots[0]
    with contextlib.suppress(IdentityError):
        certificate = certificate_of(cert_der)
        for root in roots:
            with contextlib.suppress(*UNREADABLE):
                certificate.verify_directly_issued_by(root)
                return root
    return roots[0]


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


def parse_crls(pem: bytes, where: str) -> list[x509.CertificateRevocationList]:
    """The lists in `pem`, at least one: two while one root takes over from another. IdentityError names `where`."""
    return [parse_crl(part + _CRL_END, where) for part in pem.split(_CRL_END)[:-1]] or [parse_crl(pem, where)]


def crl_of(
    root: x509.Certificate, lists: Sequence[x509.CertificateRevocationList]
) -> x509.CertificateRevocationList | None:
    """The newest of `lists` that `root` signed, stale or not; None if it signed none. Raises IdentityError."""
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return None
    signed = [crl for crl in lists if crl.issuer == root.subject and crl.is_signature_valid(key)]
    return max(signed, key=crl_number, default=None)


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 (hex) of the DER certificate: what two people compare over the telephone."""
    return _sha256(to_der(certificate))


def node_key_digest(public_key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 (hex) of a Flower node key as Flower itself serialises it (PEM SubjectPublicKeyInfo)."""
    return _sha256(node_key_bytes(public_key))


def node_key_bytes(public_key: ec.EllipticCurvePublicKey) -> bytes:
    """`public_key` as `flwr.supercore.primitives.asymmetric.public_key_to_bytes` gives it; a test holds this."""
    return public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_certificate(path: Path) -> x509.Certificate:
    """The one certificate in the PEM file `path`; raises IdentityError."""
    return parse_certificate(read_bounded(path), str(path))


def read_pair(identity: Path) -> tuple[bytes, bytes]:
    """Key and certificate (PEM) in an `identity/` folder, which belong together also while a renewal replaces them.

    Raises IdentityError.
    """
    for pause_s in (0.02, 0.1, 0.5, 0.0):
        key_pem, pem = read_private(identity / "key.pem"), read_bounded(identity / "cert.pem")
        key = key_from_pem(key_pem, str(identity / "key.pem"))
        if key.public_key() == parse_certificate(pem, str(identity / "cert.pem")).public_key():
            return key_pem, pem
        time.sleep(pause_s)
    raise IdentityError(f"{identity / 'cert.pem'}: made for another key than key.pem")


def load_crl(path: Path) -> x509.CertificateRevocationList:
    """The revocation list in the PEM file `path`; raises IdentityError."""
    return parse_crl(read_bounded(path), str(path))


def install_crl(identity: Path, pem: bytes, now: datetime | None = None) -> int:
    """Put the revocation list `pem` in place once it holds, unless it is the one there; its number.

    Raises IdentityError if it does not hold or is older, or lacks the list of a trusted root that is in place: what is
    not there any more could be followed by an older one.
    """
    roots, path = load_roots(identity / "root.pem"), identity / "crl.pem"
    lists = lists_of(pem, roots, now or datetime.now(UTC))
    present = _numbers(path, roots)
    numbers = {print_: crl_number(crl) for print_, crl in lists.items()}
    for print_, number in numbers.items():
        if number < present.get(print_, -1):
            raise IdentityError(f"revocation list {number}: {present[print_]} is already in place")
    if not present.keys() <= numbers.keys():
        raise IdentityError("revocation list: without that of the other root that is trusted here")
    if numbers != present:
        write_atomic(path, pem)
    return next(iter(numbers.values()))


def _numbers(path: Path, roots: Sequence[x509.Certificate]) -> dict[str, int]:
    """The numbers of the lists in `path`, stale or not, by the fingerprint of the root."""
    pem = read_bounded(path) if path.exists() else b""
    lists = parse_crls(pem, str(path)) if _CRL_END in pem else []
    newest = {certificate_fingerprint(root): crl_of(root, lists) for root in roots}
    return {print_: crl_number(crl) for print_, crl in newest.items() if crl is not None}


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """The number of `crl`, which grows with every list; raises IdentityError if it has none."""
    with reading("revocation list: without a number"):
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def parse_certificate(pem: bytes, where: str) -> x509.Certificate:
    """The one certificate in `pem`; IdentityError names `where`."""
    first, *others = certificates_of(pem, where)
    if others:
        raise IdentityError(f"{where}: {len(others) + 1} certificates, expected one")
    return first


def parse_crl(pem: bytes, where: str) -> x509.CertificateRevocationList:
    """The revocation list in `pem`; IdentityError names `where`."""
    return revocations_of(pem, where)


def _read_leaf(cert_der: bytes, purpose: x509.ObjectIdentifier) -> tuple[x509.Certificate, Names]:
    """The certificate and its names, after its basic constraints, key usage and sole purpose."""
    certificate = certificate_of(cert_der)
    with reading("certificate: an extension is missing"):
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if constraints.ca or not usage.digital_signature or usage.key_cert_sign or usage.crl_sign:
        raise IdentityError(f"{_label(certificate)}: basic constraints or key usage are not a leaf's")
    if purposes != [purpose]:
        raise IdentityError(f"{_label(certificate)}: extended key usage is not {purpose.dotted_string} alone")
    names = read_names(alternatives)
    if certificate.subject != subject_of(names):
        raise IdentityError(f"{_label(certificate)}: subject and alternative names differ")
    return certificate, names


def _policy(root: x509.Certificate, now: datetime) -> verification.PolicyBuilder:
    return verification.PolicyBuilder().store(verification.Store([root])).time(now).max_chain_depth(0)


@contextlib.contextmanager
def _verifying(certificate: x509.Certificate, now: datetime) -> Iterator[None]:
    try:
        yield
    except (verification.VerificationError, ValueError) as error:
        starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        dates = f"valid {starts:%F %T} to {ends:%F %T}"
        if not starts <= now <= ends:
            raise NotValidNowError(
                f"{_label(certificate)}: {dates}, and this machine's clock says {now:%F %T} UTC: it wants renewing, or "
                "the clock is wrong"
            ) from error
        raise IdentityError(f"{_label(certificate)}: no chain to the root ({dates}, now {now:%F %T})") from error


def _check_revoked(
    certificate: x509.Certificate, crl: x509.CertificateRevocationList, root: x509.Certificate, now: datetime
) -> None:
    check_crl(crl, root, now)
    entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    if entry is not None:
        raise IdentityError(f"{_label(certificate)}: revoked on {entry.revocation_date_utc:%F}")


def _label(certificate: x509.Certificate) -> str:
    return f"certificate {certificate.serial_number:x}"


def _host_name(host: str) -> x509.IPAddress | x509.DNSName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
