"""Who is at the other end: what a peer's certificate must show, and the files an identity consists of.

A home's `identity/` folder holds root.pem and crl.pem (from the authority) and cert.pem and key.pem (its own; key.pem
is 0600 and never leaves). `Trust` is the one place that says yes or no to a peer. It fails closed: no revocation list,
one that the root did not sign, older than one already seen, or past its nextUpdate, and nobody is trusted.

Chain, dates, key usage and path length are checked by cryptography's X.509 verifier (RFC 5280, CA/Browser profile);
names and the exact purpose are checked here, the revocation list in `federation/revocation.py`.
`federation/certificates.py` makes certificates.
"""

from __future__ import annotations

import contextlib
import hashlib
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
    InstitutionNames,
    Names,
    ServerNames,
    SignerNames,
    certificate_fingerprint,
    host_name,
    key_fingerprint,
    key_from_pem,
    label_of,
    read_names,
    subject_of,
)
from sovfed.federation.decoded import UNREADABLE, certificate_of, certificates_of, reading
from sovfed.federation.errors import IdentityError, NotValidNowError
from sovfed.federation.files import read_bounded, read_private, write_atomic
from sovfed.federation.revocation import END, check_crl, check_revoked, crl_number, crl_of, lists_of, parse_crls

MAX_ROOTS: Final = 2


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
        raise IdentityError(f"{label_of(certificate)}: expected an institution's names")
    with _verifying(certificate, now):
        _policy(root, now).build_client_verifier().verify(certificate, [])
    check_revoked(certificate, crl, root, now)
    return PeerIdentity(names.institution, names.node_key_digest, certificate.serial_number, _sha256(cert_der))


def verify_server(
    cert_der: bytes, root: x509.Certificate, crl: x509.CertificateRevocationList, now: datetime
) -> ServerIdentity:
    """The server that `cert_der` certifies. Raises IdentityError on anything that does not hold."""
    certificate, names = _read_leaf(cert_der, ExtendedKeyUsageOID.SERVER_AUTH)
    if not isinstance(names, ServerNames):
        raise IdentityError(f"{label_of(certificate)}: expected a server's names")
    with _verifying(certificate, now):
        _policy(root, now).build_server_verifier(host_name(names.hosts[0])).verify(certificate, [])
    check_revoked(certificate, crl, root, now)
    return ServerIdentity(names.hosts, certificate.serial_number, _sha256(cert_der))


def verify_signer(cert_der: bytes, root: x509.Certificate, now: datetime) -> SignerIdentity:
    """The signer that `cert_der` certifies, revoked or not. Raises IdentityError on anything that does not hold.

    The chain is checked as that of any leaf, but for the extended key usage that TLS would ask for.
    """
    certificate, names = _read_leaf(cert_der, ExtendedKeyUsageOID.CODE_SIGNING)
    if not isinstance(names, SignerNames):
        raise IdentityError(f"{label_of(certificate)}: not a signer's names")
    leaf = verification.ExtensionPolicy.webpki_defaults_ee().require_present(
        x509.ExtendedKeyUsage, verification.Criticality.AGNOSTIC, None
    )
    authority = verification.ExtensionPolicy.webpki_defaults_ca()
    with _verifying(certificate, now):
        policy = _policy(root, now).extension_policies(ca_policy=authority, ee_policy=leaf)
        policy.build_client_verifier().verify(certificate, [])
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):  # the chain is the authority's, which signs no other
        raise IdentityError(f"{label_of(certificate)}: not an elliptic-curve key")
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
            policy.build_server_verifier(host_name(names.hosts[0])).verify(certificate, [])
        else:
            policy.build_client_verifier().verify(certificate, [])
    return names


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
        check_revoked(certificate_of(cert_der), crl, root, self._clock())
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
    lists = parse_crls(pem, str(path)) if END in pem else []
    newest = {certificate_fingerprint(root): crl_of(root, lists) for root in roots}
    return {print_: crl_number(crl) for print_, crl in newest.items() if crl is not None}


def parse_certificate(pem: bytes, where: str) -> x509.Certificate:
    """The one certificate in `pem`; IdentityError names `where`."""
    first, *others = certificates_of(pem, where)
    if others:
        raise IdentityError(f"{where}: {len(others) + 1} certificates, expected one")
    return first


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
        raise IdentityError(f"{label_of(certificate)}: basic constraints or key usage are not a leaf's")
    if purposes != [purpose]:
        raise IdentityError(f"{label_of(certificate)}: extended key usage is not {purpose.dotted_string} alone")
    names = read_names(alternatives)
    if certificate.subject != subject_of(names):
        raise IdentityError(f"{label_of(certificate)}: subject and alternative names differ")
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
                f"{label_of(certificate)}: {dates}, and this machine's clock says {now:%F %T} UTC: it wants renewing, "
                "or the clock is wrong"
            ) from error
        raise IdentityError(f"{label_of(certificate)}: no chain to the root ({dates}, now {now:%F %T})") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
