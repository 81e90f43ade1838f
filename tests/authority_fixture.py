"""An authority's root and what it signs, well-formed or not, without a home or a registry."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sovfed.federation.certificates import (
    InstitutionNames,
    Names,
    ServerNames,
    create_csr,
    create_key,
    make_crl,
    sign_csr,
    to_pem,
)

NOW = datetime.now(UTC).replace(microsecond=0)
HOSPITAL = InstitutionNames("hospital-1", "ab" * 32)
SERVER = ServerNames(("localhost", "127.0.0.1"))
URI = x509.UniformResourceIdentifier
URIS = ("urn:sovfed:institution:hospital-1", "urn:sovfed:node-key:" + "ab" * 32)


@dataclass
class Authority:
    """A root and what it signs."""

    key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    leaf_key: ec.EllipticCurvePrivateKey = field(default_factory=create_key)

    def leaf(self, names: Names = HOSPITAL, now: datetime = NOW, days: int = 30) -> x509.Certificate:
        return sign_csr(self.key, self.root, to_pem(create_csr(self.leaf_key, names)), now, days)

    def crl(self, *serials: int, number: int = 1, now: datetime = NOW, days: int = 7) -> x509.CertificateRevocationList:
        return make_crl(self.key, self.root, [(serial, now) for serial in serials], number, now, days)

    def craft(self, *extensions: tuple[x509.ExtensionType, bool], subject: str = "hospital-1") -> x509.Certificate:
        """A leaf that the root really signed, with extensions that `sign_csr` would never write."""
        builder = (
            x509.CertificateBuilder(issuer_name=self.root.subject, public_key=self.leaf_key.public_key())
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW)
            .not_valid_after(NOW + timedelta(days=1))
        )
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        for extension, critical in (*extensions, (issuer, False)):
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())


def names_of(*uris: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([URI(uri) for uri in uris])
