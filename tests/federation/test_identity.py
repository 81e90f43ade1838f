"""Certificates and trust: what is accepted and all that is not. OpenSSL and gRPC's BoringSSL are the referees."""

from __future__ import annotations

import socket
import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID

from sovfed.federation.certificates import (
    InstitutionNames,
    Names,
    ServerNames,
    check_csr,
    create_csr,
    create_key,
    create_root,
    key_from_pem,
    key_to_pem,
    make_crl,
    sign_csr,
    to_der,
    to_pem,
)
from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.files import private_directory, read_private, write_atomic, write_private
from sovfed.federation.identity import Trust, install_crl, node_key_bytes, verify_peer, verify_server
from sovfed.federation.revocation import crl_of

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


@pytest.fixture
def authority() -> Authority:
    return Authority(*create_root("Ministry of Health", NOW))


@pytest.fixture
def impostor() -> Authority:
    """Another root with the same name."""
    return Authority(*create_root("Ministry of Health", NOW))


def names_of(*uris: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([URI(uri) for uri in uris])


LEAF = (x509.BasicConstraints(ca=False, path_length=None), True)
USAGE = (
    x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
    ),
    True,
)  # fmt: skip
CLIENT = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
GOOD_NAMES = (names_of(*URIS), False)


def test_a_certified_institution_is_recognised(authority: Authority) -> None:
    certificate = authority.leaf()
    peer = verify_peer(to_der(certificate), authority.root, authority.crl(), NOW)
    assert (peer.institution, peer.node_key_digest) == ("hospital-1", "ab" * 32)
    assert peer.serial == certificate.serial_number
    assert peer.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()
    crafted = authority.craft(LEAF, USAGE, CLIENT, GOOD_NAMES)  # what the refusals below vary is itself good
    assert verify_peer(to_der(crafted), authority.root, authority.crl(), NOW).institution == "hospital-1"


def test_a_certified_server_is_recognised(authority: Authority) -> None:
    found = verify_server(to_der(authority.leaf(SERVER)), authority.root, authority.crl(), NOW)
    assert found.hosts == ("localhost", "127.0.0.1")


def test_the_profile_of_root_and_leaf(authority: Authority) -> None:
    constraints = authority.root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    leaf = authority.leaf().extensions
    assert leaf.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(leaf.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    usage = leaf.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)


def test_a_certificate_of_another_root_with_the_same_name_is_refused(authority: Authority, impostor: Authority) -> None:
    with pytest.raises(IdentityError, match="no chain to the root"):
        verify_peer(to_der(impostor.leaf()), authority.root, authority.crl(), NOW)


def test_an_institution_cannot_certify_another(authority: Authority) -> None:
    hospital = Authority(authority.leaf_key, authority.leaf())
    with pytest.raises(IdentityError, match="no chain to the root"):
        verify_peer(to_der(hospital.leaf()), authority.root, authority.crl(), NOW)


@pytest.mark.parametrize(("after", "ok"), [(-6, False), (-4, True), (60 * 24 - 1, True), (60 * 24 + 1, False)])
def test_a_certificate_holds_only_between_its_dates(authority: Authority, after: int, ok: bool) -> None:
    certificate, now = to_der(authority.leaf(days=1)), NOW + timedelta(minutes=after)
    if ok:
        assert verify_peer(certificate, authority.root, authority.crl(), now).institution == "hospital-1"
    else:
        with pytest.raises(IdentityError, match="clock says"):
            verify_peer(certificate, authority.root, authority.crl(), now)


def test_a_revoked_certificate_is_refused_and_its_neighbour_is_not(authority: Authority) -> None:
    revoked, other = authority.leaf(), authority.leaf()
    crl = authority.crl(revoked.serial_number)
    with pytest.raises(IdentityError, match="revoked on"):
        verify_peer(to_der(revoked), authority.root, crl, NOW)
    assert verify_peer(to_der(other), authority.root, crl, NOW).serial == other.serial_number


def test_without_a_fresh_revocation_list_of_the_root_nobody_is_trusted(
    authority: Authority, impostor: Authority
) -> None:
    certificate = to_der(authority.leaf())
    with pytest.raises(IdentityError, match="stale since"):
        verify_peer(certificate, authority.root, authority.crl(days=7), NOW + timedelta(days=7))
    with pytest.raises(IdentityError, match="not valid before"):
        verify_peer(certificate, authority.root, authority.crl(now=NOW + timedelta(days=1)), NOW)
    with pytest.raises(IdentityError, match="not signed"):
        verify_peer(certificate, authority.root, impostor.crl(), NOW)
    peer = verify_peer(certificate, authority.root, authority.crl(days=7), NOW + timedelta(days=6))
    assert peer.institution == "hospital-1"


def test_institution_and_server_cannot_pose_as_each_other(authority: Authority) -> None:
    with pytest.raises(IdentityError, match="extended key usage"):
        verify_peer(to_der(authority.leaf(SERVER)), authority.root, authority.crl(), NOW)
    with pytest.raises(IdentityError, match="extended key usage"):
        verify_server(to_der(authority.leaf()), authority.root, authority.crl(), NOW)


@pytest.mark.parametrize(
    "extensions",
    [
        pytest.param(((x509.BasicConstraints(ca=True, path_length=0), True), USAGE, CLIENT, GOOD_NAMES), id="CA bit"),
        pytest.param((USAGE, CLIENT, GOOD_NAMES), id="no basic constraints"),
        pytest.param((LEAF, CLIENT, GOOD_NAMES), id="no key usage"),
        pytest.param((LEAF, USAGE, GOOD_NAMES), id="no extended key usage"),
        pytest.param(
            (LEAF, USAGE, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False), GOOD_NAMES),
            id="any purpose",
        ),
        pytest.param(
            (
                LEAF,
                USAGE,
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]), False),
                GOOD_NAMES,
            ),
            id="two purposes",
        ),
        pytest.param((LEAF, USAGE, CLIENT), id="no names"),
        pytest.param((LEAF, USAGE, CLIENT, (names_of("urn:sovfed:institution:hospital-1"), False)), id="no node key"),
        pytest.param(
            (LEAF, USAGE, CLIENT, (names_of("urn:sovfed:institution:a", "urn:sovfed:institution:b"), False)),
            id="two institutions",
        ),
        pytest.param(
            (LEAF, USAGE, CLIENT, (names_of("urn:sovfed:institution:../x", "urn:sovfed:node-key:" + "ab" * 32), False)),
            id="a path for a name",
        ),
        pytest.param(
            (
                LEAF,
                USAGE,
                CLIENT,
                (names_of("urn:sovfed:institution:other", "urn:sovfed:node-key:" + "ab" * 32), False),
            ),
            id="subject and names differ",
        ),
        pytest.param(
            (
                LEAF,
                USAGE,
                CLIENT,
                GOOD_NAMES,
                (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"x"), True),
            ),
            id="unknown critical extension",
        ),
    ],
)
def test_a_leaf_off_the_profile_is_refused_though_the_root_signed_it(
    authority: Authority, extensions: tuple[tuple[x509.ExtensionType, bool], ...]
) -> None:
    with pytest.raises(IdentityError):
        verify_peer(to_der(authority.craft(*extensions)), authority.root, authority.crl(), NOW)


def test_every_changed_byte_of_a_certificate_is_noticed(authority: Authority) -> None:
    good, crl = to_der(authority.leaf()), authority.crl()
    for at in range(0, len(good), 5):
        bad = bytearray(good)
        bad[at] ^= 1
        with pytest.raises(IdentityError):
            verify_peer(bytes(bad), authority.root, crl, NOW)


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


@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # typer, which flwr imports, on click 8.5
def test_the_node_key_digest_is_over_flowers_own_bytes() -> None:
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    assert node_key_bytes(public) == public_key_to_bytes(public)


def write_trust(folder: Path, authority: Authority, crl: x509.CertificateRevocationList) -> Path:
    write_atomic(folder / "root.pem", to_pem(authority.root))
    write_atomic(folder / "crl.pem", to_pem(crl))
    return folder


def test_trust_follows_the_revocation_list_on_disk(tmp_path: Path, authority: Authority) -> None:
    trust = Trust(write_trust(tmp_path, authority, authority.crl()), lambda: NOW)
    certificate = authority.leaf()
    assert trust.verify(to_der(certificate)).institution == "hospital-1"
    install_crl(tmp_path, to_pem(authority.crl(certificate.serial_number, number=2)), NOW)
    with pytest.raises(IdentityError, match="revoked"):
        trust.verify(to_der(certificate))


def test_trust_does_not_go_back_to_an_older_list(tmp_path: Path, authority: Authority) -> None:
    certificate = authority.leaf()
    trust = Trust(write_trust(tmp_path, authority, authority.crl(certificate.serial_number, number=5)), lambda: NOW)
    with pytest.raises(IdentityError, match="5 is already in place"):
        install_crl(tmp_path, to_pem(authority.crl(number=4)), NOW)
    write_atomic(tmp_path / "crl.pem", to_pem(authority.crl(number=4)))
    with pytest.raises(IdentityError, match="but 5 was seen before"):
        trust.verify(to_der(certificate))


def test_an_old_list_in_the_new_one_s_file_opens_no_way_back(tmp_path: Path, authority: Authority) -> None:
    """Who brings the lists, the agency, adds an old one behind the newest: from then on any since counted as newer."""
    certificate = authority.leaf()
    write_trust(tmp_path, authority, authority.crl())
    newest, old, older = (
        to_pem(authority.crl(*serials, number=number, now=NOW + timedelta(seconds=number)))
        for number, serials in ((7, [certificate.serial_number]), (5, []), (3, []))
    )
    for both in (newest + older, older + newest):
        write_trust(tmp_path, authority, authority.crl())
        install_crl(tmp_path, both, NOW)
        with pytest.raises(IdentityError, match="revocation list 5: 7 is already in place"):
            install_crl(tmp_path, old, NOW)
        with pytest.raises(IdentityError, match="revoked"):
            Trust(tmp_path, lambda: NOW).verify(to_der(certificate))


def test_of_two_lists_of_one_second_the_later_counts(authority: Authority) -> None:
    """A list is renewed and somebody revoked within the second that a list tells."""
    lists = [authority.crl(number=number) for number in (8, 9, 7)]

    assert crl_of(authority.root, lists) == lists[1]
    assert crl_of(authority.root, [authority.crl(number=2, now=NOW - timedelta(days=1)), *lists[2:]]) == lists[2]


def test_trust_fails_closed_when_the_list_goes_stale_or_missing(tmp_path: Path, authority: Authority) -> None:
    now = [NOW]
    trust = Trust(write_trust(tmp_path, authority, authority.crl(days=1)), lambda: now[0])
    certificate = to_der(authority.leaf())
    trust.verify(certificate)
    trust.check()
    now[0] += timedelta(days=1)
    with pytest.raises(IdentityError, match="stale"):
        trust.verify(certificate)
    with pytest.raises(IdentityError, match="stale"):
        trust.check()
    (tmp_path / "crl.pem").unlink()
    with pytest.raises(IdentityError, match="no revocation list"):
        trust.verify(certificate)
    with pytest.raises(IdentityError, match="no revocation list"):
        Trust(tmp_path)


def test_a_list_that_does_not_hold_is_not_put_in_place(
    tmp_path: Path, authority: Authority, impostor: Authority
) -> None:
    write_trust(tmp_path, authority, authority.crl())
    before = (tmp_path / "crl.pem").read_bytes()
    for bad in (to_pem(impostor.crl(number=9)), b"junk", to_pem(authority.crl(number=9, now=NOW - timedelta(days=30)))):
        with pytest.raises(IdentityError):
            install_crl(tmp_path, bad, NOW)
    assert (tmp_path / "crl.pem").read_bytes() == before


@pytest.mark.parametrize(("mode", "ok"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False), (0o644, False)])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int, ok: bool) -> None:
    path = tmp_path / "key.pem"
    write_private(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(mode)
    if ok:
        assert read_private(path) == b"secret"
    else:
        with pytest.raises(IdentityError, match="expected 0600"):
            read_private(path)


def test_a_secret_behind_a_link_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "real", b"secret")
    (tmp_path / "key.pem").symlink_to("real")
    with pytest.raises(IdentityError):
        read_private(tmp_path / "key.pem")


def test_a_home_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    assert stat.S_IMODE(private_directory(tmp_path / "home").stat().st_mode) == 0o700
    (tmp_path / "home").chmod(0o750)
    with pytest.raises(ServiceError, match="expected 0700"):
        private_directory(tmp_path / "home")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "f", b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r".+"):
        write_atomic(tmp_path / "folder", b"new")  # a file cannot replace a folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "folder"]
    assert (tmp_path / "f").read_bytes() == b"old"


@dataclass(frozen=True)
class End:
    """One end of a handshake: files for OpenSSL, bytes for gRPC."""

    key: Path
    certificate: Path
    root: Path


def end(folder: Path, name: str, authority: Authority, certificate: x509.Certificate) -> End:
    files = End(folder / f"{name}.key", folder / f"{name}.pem", folder / f"{name}-root.pem")
    write_private(files.key, key_to_pem(authority.leaf_key))
    write_atomic(files.certificate, to_pem(certificate))
    write_atomic(files.root, to_pem(authority.root))
    return files


def openssl_handshake(server: End, client: End, crl: Path) -> bytes | None:
    """The client's certificate as the server saw it; raises what either end raises."""
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(server.certificate, server.key)
    outside = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outside.load_cert_chain(client.certificate, client.key)
    for context, trusted in ((inside, server), (outside, client)):
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(trusted.root)
        context.load_verify_locations(crl)
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_CRL_CHECK_LEAF
    left, right = socket.socketpair()
    for one in (left, right):
        one.settimeout(10)

    def serve() -> bytes | None:
        with inside.wrap_socket(left, server_side=True) as tls:
            tls.sendall(b"!")
            return tls.getpeercert(binary_form=True)

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        try:
            with outside.wrap_socket(right, server_hostname="localhost") as tls:
                tls.recv(1)
        finally:
            right.close()
        return served.result()


def grpc_handshake(server: End, client: End | None, root: End) -> bytes:
    """The client's certificate (PEM) as a gRPC server saw it; raises RpcError when either end refuses."""
    seen: list[bytes] = []

    def hello(_: bytes, context: grpc.ServicerContext) -> bytes:
        seen.extend(bytes(shown) for shown in context.auth_context()["x509_pem_cert"])
        return b""

    pool = ThreadPoolExecutor(2)
    service = grpc.server(pool)
    handler = grpc.method_handlers_generic_handler("t.T", {"Hello": grpc.unary_unary_rpc_method_handler(hello)})
    service.add_generic_rpc_handlers((handler,))
    pair = (server.key.read_bytes(), server.certificate.read_bytes())
    demanding = grpc.ssl_server_credentials([pair], server.root.read_bytes(), require_client_auth=True)
    port = service.add_secure_port("127.0.0.1:0", demanding)
    service.start()
    mine = (client.key.read_bytes(), client.certificate.read_bytes()) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(root.root.read_bytes(), *mine)
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, (("grpc.enable_http_proxy", 0),)) as channel:
            channel.unary_unary("/t.T/Hello", bytes, bytes)(b"", timeout=5)
    finally:
        service.stop(0).wait(10)
        pool.shutdown()
    return seen[0]


def test_openssl_takes_our_certificates_both_ways_in_strict_mode(tmp_path: Path, authority: Authority) -> None:
    write_atomic(tmp_path / "crl.pem", to_pem(authority.crl()))
    server = end(tmp_path, "server", authority, authority.leaf(SERVER))
    client = end(tmp_path, "client", authority, certificate := authority.leaf())
    assert openssl_handshake(server, client, tmp_path / "crl.pem") == to_der(certificate)


def test_openssl_refuses_what_we_refuse(tmp_path: Path, authority: Authority, impostor: Authority) -> None:
    crl = tmp_path / "crl.pem"
    revoked = authority.leaf()
    write_atomic(crl, to_pem(authority.crl(revoked.serial_number)))
    server = end(tmp_path, "server", authority, authority.leaf(SERVER))
    refused = {
        "unknown authority": end(tmp_path, "a", impostor, impostor.leaf()),
        "expired": end(tmp_path, "b", authority, authority.leaf(now=NOW - timedelta(days=40))),
        "revoked": end(tmp_path, "c", authority, revoked),
        "a server's": end(tmp_path, "d", authority, authority.leaf(SERVER)),
    }
    for why, client in refused.items():
        with pytest.raises(ssl.SSLError):
            pytest.fail(f"{why}: {openssl_handshake(server, End(client.key, client.certificate, server.root), crl)!r}")
    posing = end(tmp_path, "e", authority, authority.leaf())
    with pytest.raises(ssl.SSLError):
        openssl_handshake(posing, end(tmp_path, "f", authority, authority.leaf()), crl)


def test_grpc_takes_our_certificates_both_ways(tmp_path: Path, authority: Authority) -> None:
    server = end(tmp_path, "server", authority, authority.leaf(SERVER))
    client = end(tmp_path, "client", authority, certificate := authority.leaf())
    assert grpc_handshake(server, client, server) == to_pem(certificate)


def test_grpc_refuses_unknown_expired_and_wrong_purpose(
    tmp_path: Path, authority: Authority, impostor: Authority
) -> None:
    server = end(tmp_path, "server", authority, authority.leaf(SERVER))
    refused = [
        None,
        end(tmp_path, "a", impostor, impostor.leaf()),
        end(tmp_path, "b", authority, authority.leaf(now=NOW - timedelta(days=40))),
        end(tmp_path, "c", authority, authority.leaf(SERVER)),
    ]
    for client in refused:
        with pytest.raises(grpc.RpcError):
            grpc_handshake(server, client, server)
    client = end(tmp_path, "client", authority, authority.leaf())
    for posing in (
        end(tmp_path, "d", authority, authority.leaf()),
        end(tmp_path, "e", impostor, impostor.leaf(SERVER)),
    ):
        with pytest.raises(grpc.RpcError):
            grpc_handshake(posing, client, server)
