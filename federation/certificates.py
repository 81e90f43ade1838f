"""Making X.509 material: keys, the authority's root, signing requests, leaf certificates, revocation lists.

ECDSA over P-256 with SHA-256 throughout (gRPC's BoringSSL takes no Ed25519 leaf). A certificate names one of three:

    institution  SAN URIs urn:sovfed:institution:NAME and urn:sovfed:node-key:SHA256HEX; EKU clientAuth only
    server       SAN DNS names and IP addresses, and the URI urn:sovfed:server;          EKU serverAuth only
    signer       SAN URIs urn:sovfed:signer:PERSON and urn:sovfed:organisation:NAME;     EKU codeSigning only

A signer publishes and reviews tasks; with its certificate no TLS connection can be opened.

`sign_csr` copies nothing from a request: it reads the names, refuses whatever else is there, and builds the
certificate anew. Checking what a peer shows is `federation/identity.py`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from sovfed.federation.decoded import request_of
from sovfed.federation.errors import IdentityError

INSTITUTION_URN: Final = "urn:sovfed:institution:"
NODE_KEY_URN: Final = "urn:sovfed:node-key:"
SERVER_URN: Final = "urn:sovfed:server"
SIGNER_URN: Final = "urn:sovfed:signer:"
ORGANISATION_URN: Final = "urn:sovfed:organisation:"
SERVER_SUBJECT: Final = "sovfed-server"
ROOT_DAYS: Final = 3650
CLOCK_SKEW: Final = timedelta(minutes=5)  # how far the clocks of two institutions may differ
MAX_CSR_BYTES: Final = 8192
MAX_SERVER_NAMES: Final = 16
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_INSTITUTION: Final = re.compile(_LABEL)
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class InstitutionNames:
    """Whom an institution's certificate or request speaks for, and the one Flower node key bound to it."""

    institution: str
    node_key_digest: str


@dataclass(frozen=True)
class ServerNames:
    """The DNS names and IP addresses under which the agency's server may answer."""

    hosts: tuple[str, ...]


@dataclass(frozen=True)
class SignerNames:
    """A person who publishes or reviews tasks, and the organisation that the person works for."""

    person: str
    organisation: str


Names: TypeAlias = InstitutionNames | ServerNames | SignerNames
PURPOSES: Final = {
    InstitutionNames: ExtendedKeyUsageOID.CLIENT_AUTH,
    ServerNames: ExtendedKeyUsageOID.SERVER_AUTH,
    SignerNames: ExtendedKeyUsageOID.CODE_SIGNING,
}


def check_institution_name(name: str, what: str = "institution name") -> str:
    """`name` itself if it is one DNS label in lower case (so also safe as a file name); else IdentityError."""
    if not _INSTITUTION.fullmatch(name):
        raise IdentityError(f"{what} {name[:80]!r}: expected 1-63 of a-z, 0-9 and '-', not at either end")
    return name


def create_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key from the operating system's generator."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """PKCS#8 PEM of `key`, encrypted under `passphrase` if one is given."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        protection = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


def key_from_pem(pem: bytes, where: str, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """The P-256 private key in `pem`; IdentityError names `where` when it is not one or the passphrase is wrong."""
    try:
        key = serialization.load_pem_private_key(pem, passphrase or None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{where}: no readable private key, or a wrong or missing passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise IdentityError(f"{where}: not a P-256 key")
    return key


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 (hex) of the public key's SubjectPublicKeyInfo: what two people compare over the telephone."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 (hex) of the DER certificate: what two people compare over the telephone."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def label_of(certificate: x509.Certificate) -> str:
    """How an error calls a certificate."""
    return f"certificate {certificate.serial_number:x}"


def create_root(name: str, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A new root key and its self-signed certificate, which may sign leaves only (path length 0)."""
    key = create_key()
    try:
        subject = _subject(name)
    except ValueError as error:
        raise IdentityError(f"authority name {name[:80]!r}: expected 1-64 characters") from error
    builder = (
        x509.CertificateBuilder(issuer_name=subject, subject_name=subject, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return key, builder.sign(key, hashes.SHA256())


def create_csr(key: ec.EllipticCurvePrivateKey, names: Names) -> x509.CertificateSigningRequest:
    """A signing request for `names`; it carries the subject and the alternative names and nothing else."""
    alternatives = _alternative_names(names)  # checks them, before the subject is built from them
    builder = x509.CertificateSigningRequestBuilder(subject_name=subject_of(names))
    return builder.add_extension(alternatives, critical=False).sign(key, hashes.SHA256())


def check_csr(pem: bytes) -> tuple[Names, ec.EllipticCurvePublicKey]:
    """The names and the key that the signing request in `pem` (at most 8 KiB) asks to have certified.

    Raises IdentityError unless the request is signed by its own P-256 key, and carries the alternative names of
    one institution, one server or one signer, the subject that belongs to them, and nothing else.
    """
    if len(pem) > MAX_CSR_BYTES:
        raise IdentityError(f"signing request: {len(pem)} bytes, at most {MAX_CSR_BYTES} are taken")
    csr = request_of(pem)
    key, signed, extensions = csr.public_key(), csr.is_signature_valid, csr.extensions
    attributes = [attribute.oid for attribute in csr.attributes]
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise IdentityError("signing request: the key is not P-256")
    if not signed:
        raise IdentityError("signing request: not signed by its own key")
    oids = [extension.oid for extension in extensions]
    if oids != [ExtensionOID.SUBJECT_ALTERNATIVE_NAME] or len(attributes) != 1:
        requested = ", ".join(oid.dotted_string for oid in oids[:8])
        raise IdentityError(f"signing request: extensions [{requested}], expected the alternative names alone")
    names = read_names(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    if csr.subject != subject_of(names):
        raise IdentityError("signing request: subject and alternative names differ")
    return names, key


def read_names(alternatives: x509.SubjectAlternativeName) -> Names:
    """The institution's, server's or signer's names in `alternatives`. Raises IdentityError on any other set."""
    uris = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    hosts = alternatives.get_values_for_type(x509.DNSName)
    addresses = [str(address) for address in alternatives.get_values_for_type(x509.IPAddress)]
    if len(uris) + len(hosts) + len(addresses) != len(list(alternatives)):
        raise IdentityError("alternative names: only URI, DNS and IP names are known here")
    if uris == [SERVER_URN]:
        return ServerNames(_check_hosts((*hosts, *addresses)))
    if hosts or addresses or len(uris) != 2:
        raise IdentityError("alternative names: neither those of one institution, of one server nor of one signer")
    if uris[0].startswith(SIGNER_URN):
        return _signer_names(*uris)
    institution, digest = uris[0].removeprefix(INSTITUTION_URN), uris[1].removeprefix(NODE_KEY_URN)
    if uris != [INSTITUTION_URN + institution, NODE_KEY_URN + digest] or not _DIGEST.fullmatch(digest):
        raise IdentityError("alternative names: expected one institution name and one node key digest")
    return InstitutionNames(check_institution_name(institution), digest)


def _signer_names(person: str, organisation: str) -> SignerNames:
    if not organisation.startswith(ORGANISATION_URN):
        raise IdentityError("alternative names: a signer without an organisation")
    names = SignerNames(person.removeprefix(SIGNER_URN), organisation.removeprefix(ORGANISATION_URN))
    check_institution_name(names.person, "signer's name")
    check_institution_name(names.organisation, "organisation's name")
    return names


def subject_of(names: Names) -> x509.Name:
    """The one subject that goes with `names`."""
    match names:
        case ServerNames():
            return _subject(SERVER_SUBJECT)
        case SignerNames():
            return _subject(names.person)
        case _:
            return _subject(names.institution)


def sign_csr(
    root_key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate,
    csr: bytes,
    now: datetime,
    days: float,
) -> x509.Certificate:
    """A leaf certificate, valid for `days`, for the key and names in `csr` (PEM) once `check_csr` passes them."""
    names, key = check_csr(csr)
    until = now + timedelta(days=days)
    if days <= 0 or until > root.not_valid_after_utc:
        raise IdentityError(f"validity of {days} days: expected more than 0, ending by {root.not_valid_after_utc:%F}")
    purpose = PURPOSES[type(names)]
    builder = (
        x509.CertificateBuilder(issuer_name=root.subject, subject_name=subject_of(names), public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(_alternative_names(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_issuer_key_identifier(root_key), critical=False)
    )
    return builder.sign(root_key, hashes.SHA256())


def make_crl(
    root_key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate,
    revoked: Iterable[tuple[int, datetime]],
    number: int,
    now: datetime,
    days: int,
) -> x509.CertificateRevocationList:
    """The signed list of `revoked` (serial, when), good for `days`; `number` must grow with every list."""
    builder = (
        x509.CertificateRevocationListBuilder(issuer_name=root.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(now + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_issuer_key_identifier(root_key), critical=False)
    )
    for serial, when in revoked:
        entry = x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(root_key, hashes.SHA256())


def same_issuer(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Whether both name the same key of an authority; what they name is not verified."""
    first, second = (
        certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        for certificate in (one, other)
    )
    return first == second


def to_pem(item: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList) -> bytes:
    """PEM text of a certificate, request or revocation list."""
    return item.public_bytes(serialization.Encoding.PEM)


def to_der(certificate: x509.Certificate) -> bytes:
    """DER bytes of `certificate`."""
    return certificate.public_bytes(serialization.Encoding.DER)


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative_names(names: Names) -> x509.SubjectAlternativeName:
    if isinstance(names, ServerNames):
        hosts = [host_name(host) for host in _check_hosts(names.hosts)]
        return x509.SubjectAlternativeName([*hosts, x509.UniformResourceIdentifier(SERVER_URN)])
    if isinstance(names, SignerNames):
        uris = (SIGNER_URN + names.person, ORGANISATION_URN + names.organisation)
        _signer_names(*uris)
        return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    if not _DIGEST.fullmatch(names.node_key_digest):
        raise IdentityError("node key digest: expected 64 hexadecimal digits")
    uris = (INSTITUTION_URN + check_institution_name(names.institution), NODE_KEY_URN + names.node_key_digest)
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])


def host_name(host: str) -> x509.IPAddress | x509.DNSName:
    """`host` as a certificate names it."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(hosts) <= MAX_SERVER_NAMES:
        raise IdentityError(f"server certificate: {len(hosts)} names, expected 1 to {MAX_SERVER_NAMES}")
    for host in hosts:
        if isinstance(host_name(host), x509.DNSName) and (len(host) > 253 or not _HOST.fullmatch(host)):
            raise IdentityError(f"server name {host[:80]!r}: expected a lower-case DNS name or an IP address")
    return hosts


def _issuer_key_identifier(root_key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
