"""Requests, names and keys: what is signed, and all that is not."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID
from tests.authority_fixture import HOSPITAL, NOW, SERVER, URIS, Authority, names_of

from sovfed.federation.certificates import (
    InstitutionNames,
    ServerNames,
    check_csr,
    create_csr,
    create_key,
    create_root,
    key_from_pem,
    key_to_pem,
    sign_csr,
    to_pem,
)
from sovfed.federation.errors import IdentityError


@pytest.fixture
def authority() -> Authority:
    return Authority(*create_root("Ministry of Health", NOW))


def csr_with(
    subject: str = "hospital-1",
    names: tuple[str, ...] = URIS,
    *extra: x509.ExtensionType,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    password: bool = False,
) -> bytes:
    common = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    builder = x509.CertificateSigningRequestBuilder(subject_name=common).add_extension(names_of(*names), critical=False)
    for extension in extra:
        builder = builder.add_extension(extension, critical=False)
    if password:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"please")
    return to_pem(builder.sign(key or create_key(), hashes.SHA256()))


def test_a_sound_request_is_read_and_signed(authority: Authority) -> None:
    key = create_key()
    names, found = check_csr(csr_with(key=key))
    assert names == HOSPITAL
    assert found == key.public_key()
    assert check_csr(to_pem(create_csr(key, SERVER)))[0] == SERVER


@pytest.mark.parametrize(
    "pem",
    [
        pytest.param(csr_with("someone-else"), id="subject of another"),
        pytest.param(csr_with("h", ("urn:sovfed:institution:h",)), id="no node key"),
        pytest.param(csr_with("h", ("urn:sovfed:institution:h", "urn:sovfed:node-key:xy")), id="short digest"),
        pytest.param(csr_with("H", ("urn:sovfed:institution:H", "urn:sovfed:node-key:" + "ab" * 32)), id="upper case"),
        pytest.param(csr_with("h", ("urn:sovfed:server", "urn:sovfed:institution:h")), id="server and institution"),
        pytest.param(
            csr_with("h", ("urn:sovfed:institution:h", "urn:sovfed:node-key:" + "ab" * 32, "urn:x:y")), id="extra name"
        ),
        pytest.param(csr_with("sovfed-server", ("urn:sovfed:server",)), id="server without a name"),
        pytest.param(csr_with("hospital-1", URIS, x509.BasicConstraints(ca=True, path_length=None)), id="CA bit"),
        pytest.param(
            csr_with("hospital-1", URIS, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])), id="purpose"
        ),
        pytest.param(csr_with(password=True), id="challenge password"),
        pytest.param(csr_with(key=ec.generate_private_key(ec.SECP384R1())), id="P-384"),
        pytest.param(csr_with(key=rsa.generate_private_key(65537, 2048)), id="RSA"),
        pytest.param(b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", id="junk"),
        pytest.param(b"x" * 9000, id="oversize"),
    ],
)  # fmt: skip
def test_a_request_for_anything_else_is_refused(authority: Authority, pem: bytes) -> None:
    with pytest.raises(IdentityError):
        sign_csr(authority.key, authority.root, pem, NOW, 30)


def test_a_request_changed_on_the_way_is_refused() -> None:
    der = bytearray(x509.load_pem_x509_csr(csr_with()).public_bytes(serialization.Encoding.DER))
    at = der.index(b"institution:hospital-1")
    der[at + len(b"institution:hospital-")] = ord("2")
    at = der.index(b"hospital-1")
    der[at + len(b"hospital-")] = ord("2")
    with pytest.raises(IdentityError, match="not signed by its own key"):
        check_csr(x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize("name", ["", "-a", "a-", "a.b", "a/b", "..", "A", "ä", "a b", "a" * 64, "a\n"])
def test_an_institution_name_is_one_dns_label(name: str) -> None:
    with pytest.raises(IdentityError):
        create_csr(create_key(), InstitutionNames(name, "ab" * 32))


@pytest.mark.parametrize("host", ["*.example", "EXAMPLE", "a..b", "", "a" * 254, "x;y"])
def test_a_server_name_is_a_plain_host_or_address(host: str) -> None:
    with pytest.raises(IdentityError):
        create_csr(create_key(), ServerNames((host,)))


def test_a_leaf_never_outlives_the_root(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="validity"):
        authority.leaf(days=4000)


def test_a_private_key_opens_only_with_its_passphrase() -> None:
    key = create_key()
    pem = key_to_pem(key, b"correct horse")
    assert key_from_pem(pem, "root.key", b"correct horse").public_key() == key.public_key()
    for wrong in (None, b"wrong"):
        with pytest.raises(IdentityError, match=r"root\.key"):
            key_from_pem(pem, "root.key", wrong)
