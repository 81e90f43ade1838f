"""What others wrote as a certificate, a request or a revocation list is wholly readable, or an IdentityError."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

import sovfed
from sovfed.federation.certificates import (
    InstitutionNames,
    create_csr,
    create_key,
    create_root,
    make_crl,
    sign_csr,
    to_der,
    to_pem,
)
from sovfed.federation.decoded import certificate_of, request_of, revocations_of
from sovfed.federation.errors import IdentityError
from sovfed.federation.identity import issuer_of, verify_lapsed, verify_signer

pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
NOW = datetime.now(UTC).replace(microsecond=0)
KEY, ROOT = create_root("Ministry of Health", NOW)
REQUEST = create_csr(create_key(), InstitutionNames("hospital-1", "ab" * 32))
LEAF = to_der(sign_csr(KEY, ROOT, to_pem(REQUEST), NOW, 30))


def changed(der: bytes) -> Iterator[bytes]:
    """`der` with each bit turned, and cut off at each place."""
    for position in range(len(der)):
        for bit in range(8):
            yield der[:position] + bytes([der[position] ^ (1 << bit)]) + der[position + 1 :]
        yield der[:position]


def pem(der: bytes, label: str) -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label.encode(), base64.encodebytes(der), label.encode())


def outcomes(judge: Callable[[bytes], object], der: bytes, label: str = "") -> list[bool]:
    """Of each change, whether `judge` took it; it may refuse by an IdentityError and by nothing else."""
    taken = []
    for data in changed(der):
        try:
            judge(pem(data, label) if label else data)
            taken.append(True)
        except IdentityError:
            taken.append(False)
    return taken


def look(certificate: x509.Certificate) -> None:
    """Whatever anybody asks of a certificate."""
    for name in (*certificate.subject, *certificate.issuer):
        assert name.value is not None
    assert all(extension.oid for extension in certificate.extensions)
    assert certificate.public_key() is not None
    assert certificate.version in x509.Version
    assert certificate.serial_number > 0
    assert certificate.not_valid_after_utc > datetime.min.replace(tzinfo=UTC)
    assert certificate.signature_hash_algorithm is not None or certificate.signature


def test_certificates_with_a_bit_turned() -> None:
    """Seen: a version that there is not is no ValueError, and ended the reader of a release."""
    taken = outcomes(lambda data: look(certificate_of(data)), LEAF)
    assert any(taken) and not all(taken)


@pytest.mark.parametrize(
    "judge",
    [lambda data: verify_lapsed(data, (ROOT,)), lambda data: verify_signer(data, ROOT, NOW)],
    ids=["lapsed", "signer"],
)
def test_no_judge_of_certificates_ends_otherwise(judge: Callable[[bytes], object]) -> None:
    assert not any(outcomes(judge, LEAF))


def test_a_certificate_has_one_spelling_whatever_its_signature_ends_with() -> None:
    """Seen: of signatures that end with a zero bit, one said to be unused was taken, and the digest was another."""
    for _ in range(16):
        leaf = to_der(sign_csr(KEY, ROOT, to_pem(REQUEST), NOW, 30))
        at = len(leaf) - len(certificate_of(leaf).signature) - 1
        for unused in range(1, 8):
            with pytest.raises(IdentityError):
                certificate_of(leaf[:at] + bytes([unused]) + leaf[at + 1 :])


def test_of_two_roots_none_has_signed_what_cannot_be_read() -> None:
    other = create_root("Ministry of Health", NOW)[1]
    assert {issuer_of(data, (other, ROOT)) for data in changed(LEAF)} == {other}
    assert issuer_of(LEAF, (other, ROOT)) == ROOT


def test_requests_and_lists_with_a_bit_turned() -> None:
    crl = make_crl(KEY, ROOT, [(7, NOW)], 1, NOW, 7)
    request, listed = REQUEST.public_bytes(serialization.Encoding.DER), crl.public_bytes(serialization.Encoding.DER)
    assert not all(outcomes(request_of, request, "CERTIFICATE REQUEST"))
    assert not all(outcomes(lambda data: revocations_of(data, "list"), listed, "X509 CRL"))


def test_they_are_read_in_one_place_alone() -> None:
    package = Path(sovfed.__file__).parent
    sources = [path for part in ("clients", "federation", "server") for path in (package / part).rglob("*.py")]
    reading = {path.name for path in sources if "x509.load_" in path.read_text()}
    assert reading == {"decoded.py", "proxy.py"}  # the latter's are for TLS, of any authority, and nobody reads them
