"""Certificates and trust: what is accepted and all that is not. OpenSSL and gRPC's BoringSSL are the referees."""

from __future__ import annotations

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.authority_fixture import NOW, SERVER, URIS, Authority, names_of

from sovfed.federation.certificates import (
    create_root,
    key_to_pem,
    to_der,
    to_pem,
)
from sovfed.federation.errors import IdentityError
from sovfed.federation.files import write_atomic, write_private
from sovfed.federation.identity import Trust, install_crl, node_key_bytes, verify_peer, verify_server
from sovfed.federation.revocation import crl_of


@pytest.fixture
def authority() -> Authority:
    return Authority(*create_root("Ministry of Health", NOW))


@pytest.fixture
def impostor() -> Authority:
    """Another root with the same name."""
    return Authority(*create_root("Ministry of Health", NOW))


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
