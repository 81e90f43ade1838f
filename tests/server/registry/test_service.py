"""The registry over real TLS: who gets in at which endpoint, and what the refused are told."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.enrolment_fixture import STATUS, Agency, Applicant, Pair, call, make_agency, refusal
from tests.server.agency import wait_until

from sovfed.federation.certificates import (
    InstitutionNames,
    create_csr,
    create_key,
    create_root,
    key_from_pem,
    key_to_pem,
    make_crl,
    sign_csr,
    to_pem,
)
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import ConfigError, IdentityError, ServiceError
from sovfed.federation.files import read_private, write_atomic, write_private
from sovfed.federation.host.settings import settings_file
from sovfed.federation.identity import load_certificate, node_key_digest
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import ENROLMENT_SERVICE, REGISTRY_SERVICE
from sovfed.server.network.guard import BUSY, FAILED, LATE, MALFORMED, MESSAGE_S, PER_SOURCE, REFUSED, source_of
from sovfed.server.registry import authority, enrolment

NOW = datetime.now(UTC)


def lane_call(agency: Agency, method: str, request: object, reply: object, pair: Pair | None) -> object:
    root = (agency.home / "identity" / "root.pem").read_bytes()
    return call(agency.where.lane, f"/{REGISTRY_SERVICE}/{method}", request, reply, root, pair)


def lane_status(agency: Agency, pair: Pair | None) -> grpc.StatusCode:
    """What a roster call with `pair` meets: OK or the refusal, and that says nothing but a fixed sentence."""
    try:
        lane_call(agency, "Roster", pb.Empty(), pb.RosterReply, pair)
    except grpc.RpcError as error:
        status, details = error.code(), error.details()
    else:
        return STATUS.OK
    if status is STATUS.PERMISSION_DENIED:
        assert details == REFUSED
    return status


def test_a_message_over_64_kib_is_refused_before_it_is_read(agency: Agency) -> None:
    applicant = Applicant(agency)
    assert refusal(applicant, applicant.request(applicant.csr() + b"#" * 70_000)) is STATUS.RESOURCE_EXHAUSTED
    assert applicant.ask(applicant.request(applicant.csr())) == pb.EnrolReply()


def test_the_lane_port_demands_a_certificate_of_the_authority(agency: Agency) -> None:
    good = Applicant(agency).enrolled()
    foreign_key, foreign_root = create_root("Ministry of Health", NOW)
    csr = to_pem(create_csr(create_key(), InstitutionNames("hospital-1", "ab" * 32)))
    foreign = to_pem(sign_csr(foreign_key, foreign_root, csr, NOW, 30))
    root_key = key_from_pem(read_private(agency.authority / "root.key"), "root.key")
    root = load_certificate(agency.authority / "root.pem")
    own_csr = to_pem(create_csr(key_from_pem(good[0], "key"), InstitutionNames("hospital-1", "ab" * 32)))
    expired = to_pem(sign_csr(root_key, root, own_csr, NOW - timedelta(days=40), 30))
    identity = agency.home / "identity"
    servers_own = (read_private(identity / "key.pem"), (identity / "cert.pem").read_bytes())
    assert lane_status(agency, None) is STATUS.UNAVAILABLE
    assert lane_status(agency, (good[0], foreign)) is not STATUS.OK
    assert lane_status(agency, (good[0], expired)) is STATUS.UNAVAILABLE
    assert lane_status(agency, servers_own) is not STATUS.OK
    assert lane_status(agency, good) is STATUS.OK


def test_a_revocation_holds_for_the_next_call_also_on_an_open_connection(agency: Agency) -> None:
    first, second = Applicant(agency).enrolled(), Applicant(agency, "hospital-2").enrolled()
    root = (agency.home / "identity" / "root.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(root, *first)
    with grpc.secure_channel(agency.where.lane, credentials, (("grpc.enable_http_proxy", 0),)) as channel:
        roster = channel.unary_unary(
            f"/{REGISTRY_SERVICE}/Roster", pb.Empty.SerializeToString, pb.RosterReply.FromString
        )
        assert [member.institution for member in roster(pb.Empty(), timeout=10).members] == ["hospital-1", "hospital-2"]
        agency.publish_crl(authority.revoke(agency.authority, "hospital-1"))
        with pytest.raises(grpc.RpcError) as caught:
            roster(pb.Empty(), timeout=10)
        assert (caught.value.code(), caught.value.details()) == (STATUS.PERMISSION_DENIED, REFUSED)
    found = lane_call(agency, "Roster", pb.Empty(), pb.RosterReply, second)
    assert isinstance(found, pb.RosterReply)
    assert [(member.institution, member.node_id) for member in found.members] == [("hospital-2", 2**63 + 2)]


def test_a_stale_revocation_list_stops_every_peer_until_a_fresh_one_comes(agency: Agency) -> None:
    pair = Applicant(agency).enrolled()
    root_key = key_from_pem(read_private(agency.authority / "root.key"), "root.key")
    root = load_certificate(agency.authority / "root.pem")
    agency.publish_crl(to_pem(make_crl(root_key, root, [], 2, NOW - timedelta(days=8), 7)))
    assert lane_status(agency, pair) is STATUS.PERMISSION_DENIED
    assert not health(agency).serving
    authority.refresh_crl(agency.authority)
    agency.publish_crl(authority.refresh_crl(agency.authority))
    assert lane_status(agency, pair) is STATUS.OK
    assert health(agency).serving


def health(agency: Agency) -> pb.HealthReply:
    """What the Unix socket says of the registry."""
    with grpc.insecure_channel(f"unix:{agency.home / 'lane.sock'}") as channel:
        stub = channel.unary_unary(f"/{REGISTRY_SERVICE}/Health", pb.Empty.SerializeToString, pb.HealthReply.FromString)
        found: pb.HealthReply = stub(pb.Empty(), timeout=10)
        return found


def test_the_socket_is_the_owners_alone_and_offers_no_renewal(agency: Agency) -> None:
    path = agency.home / "lane.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert health(agency) == pb.HealthReply(
        serving=True, enrolment_address=agency.where.enrolment, lane_address=agency.where.lane
    )
    with grpc.insecure_channel(f"unix:{path}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{REGISTRY_SERVICE}/Renew", bytes, bytes)(b"", timeout=10)
    assert caught.value.code() is STATUS.UNIMPLEMENTED


def test_a_renewal_is_for_the_same_names_and_the_same_key(agency: Agency) -> None:
    applicant, other = Applicant(agency), Applicant(agency, "hospital-2")
    pair = applicant.enrolled(days=30)
    other.enrolled()

    def renew(csr: bytes) -> pb.EnrolReply:
        reply = lane_call(agency, "Renew", pb.RenewRequest(csr=csr), pb.EnrolReply, pair)
        assert isinstance(reply, pb.EnrolReply)
        return reply

    digest = node_key_digest(applicant.node_key.public_key())
    new_key = to_pem(create_csr(create_key(), InstitutionNames("hospital-1", digest)))
    for wrong in (other.csr(), new_key, applicant.csr(digest="ab" * 32), b"junk"):
        with pytest.raises(grpc.RpcError) as caught:
            renew(wrong)
        assert (caught.value.code(), caught.value.details()) == (STATUS.PERMISSION_DENIED, REFUSED)
    good = applicant.csr()
    assert renew(good) == pb.EnrolReply()
    with pytest.raises(IdentityError, match="ends no later"):
        enrolment.accept_certificate(agency.home, pair[1], agency.register)
    renewed = agency.certify("hospital-1", days=365)
    assert renew(good).certificate == renewed
    assert len(agency.registered) == 2, "the node stays registered as it was"


def test_an_unexpected_error_reaches_the_peer_as_a_fixed_sentence(agency: Agency) -> None:
    applicant = Applicant(agency)
    (agency.home / "registry" / "requests").write_bytes(b"Mr Smith, born 1950")  # a file where a folder must be
    with pytest.raises(grpc.RpcError) as caught:
        applicant.ask(applicant.request(applicant.csr()))
    assert (caught.value.code(), caught.value.details()) == (STATUS.INTERNAL, FAILED)
    (agency.home / "registry" / "requests").unlink()


def test_a_flood_from_one_address_is_slowed_down(agency: Agency) -> None:
    applicant = Applicant(agency)
    request = applicant.request(applicant.csr(), token="0" * 64)
    root = (agency.home / "identity" / "root.pem").read_bytes()
    codes = []
    credentials = grpc.ssl_channel_credentials(root)
    with grpc.secure_channel(agency.where.enrolment, credentials, (("grpc.enable_http_proxy", 0),)) as channel:
        stub = channel.unary_unary(f"/{ENROLMENT_SERVICE}/Enrol", pb.EnrolRequest.SerializeToString, bytes)
        for _ in range(80):
            with pytest.raises(grpc.RpcError) as caught:
                stub(request, timeout=10)
            codes.append((caught.value.code(), caught.value.details()))
    assert set(codes) == {(STATUS.PERMISSION_DENIED, REFUSED), (STATUS.RESOURCE_EXHAUSTED, BUSY)}
    assert codes[:50] == [(STATUS.PERMISSION_DENIED, REFUSED)] * 50


def test_it_refuses_to_start_unsafely(tmp_path: Path) -> None:
    agency = make_agency(tmp_path)
    identity = agency.home / "identity"

    def start() -> None:
        with agency.run():
            pass

    start()
    (identity / "key.pem").chmod(0o640)
    with pytest.raises(IdentityError, match="expected 0600"):
        start()
    own = (identity / "key.pem").read_bytes()
    write_private(identity / "key.pem", key_to_pem(create_key()))
    with pytest.raises(IdentityError, match="made for another key"):
        start()
    write_private(identity / "key.pem", own)
    agency.home.chmod(0o755)
    with pytest.raises(ServiceError, match="expected 0700"):
        start()
    agency.home.chmod(0o700)
    root_key = key_from_pem(read_private(agency.authority / "root.key"), "root.key")
    root = load_certificate(agency.authority / "root.pem")
    fresh = (identity / "crl.pem").read_bytes()
    agency.publish_crl(to_pem(make_crl(root_key, root, [], 9, NOW - timedelta(days=8), 7)))
    with pytest.raises(IdentityError, match="stale"):
        start()
    agency.publish_crl(fresh)
    start()
    own_csr = to_pem(create_csr(key_from_pem(own, "key"), InstitutionNames("hospital-1", "ab" * 32)))
    certificate = (identity / "cert.pem").read_bytes()
    write_atomic(identity / "cert.pem", authority.sign(agency.authority, own_csr))
    with pytest.raises(IdentityError, match="extended key usage"):
        start()
    write_atomic(identity / "cert.pem", certificate)
    start()
    agency.publish_crl(authority.revoke(agency.authority, "localhost", "server"))
    with pytest.raises(IdentityError, match="revoked"):
        start()


def test_a_second_registry_is_kept_out(tmp_path: Path) -> None:
    agency = make_agency(tmp_path)
    second = Agency(agency.authority, agency.home)
    with agency.run() as where:
        with pytest.raises(ServiceError, match="already running"), second.run():
            pass
        other = make_agency(tmp_path / "other")
        taken = ServerConfig(enrolment_port=int(where.enrolment.rpartition(":")[2]), lane_port=0)
        with pytest.raises(ServiceError, match="registry"), other.run(taken):
            pass
        assert health(agency).serving


def test_a_home_too_deep_for_a_unix_socket_is_named(tmp_path: Path) -> None:
    agency = make_agency(tmp_path / ("x" * 100))
    with pytest.raises(ConfigError, match="longer than 107 bytes"), agency.run():
        pass


@contextlib.contextmanager
def silent_calls(agency: Agency, count: int) -> Iterator[list[Any]]:
    """Calls to enrol whose request never comes, eight a connection, of one address."""
    root, stop = (agency.home / "identity" / "root.pem").read_bytes(), threading.Event()

    def nothing() -> Iterator[bytes]:
        stop.wait()
        yield from ()

    with contextlib.ExitStack() as stack:
        stack.callback(stop.set)
        calls = []
        for number in range(count // 8):
            options = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1), ("number", number))
            credentials = grpc.ssl_channel_credentials(root)
            channel = stack.enter_context(grpc.secure_channel(agency.where.enrolment, credentials, options))
            enrol: Any = channel.stream_unary(f"/{ENROLMENT_SERVICE}/Enrol")
            calls += [enrol.future(nothing()) for _ in range(8)]
        yield calls


def test_calls_that_never_send_their_request_keep_nobody_out_of_enrolment(agency: Agency) -> None:
    applicant = Applicant(agency)
    request = applicant.request(applicant.csr())
    with silent_calls(agency, 64) as calls:
        wait_until(lambda: sum(one.done() for one in calls) >= 64 - PER_SOURCE, 20.0, "room for others")
        start = time.monotonic()
        assert applicant.ask(request).certificate == b"", "the same address is served while eight calls wait"
        assert time.monotonic() - start < 3.0
        wait_until(lambda: all(one.done() for one in calls), MESSAGE_S + 15.0, "the calls' end")
        told = {(one.code(), one.details()) for one in calls}
    assert told == {(STATUS.DEADLINE_EXCEEDED, LATE)}


@pytest.mark.parametrize("junk", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a" * 70, bytes(40)], ids=len)
def test_junk_is_answered_with_a_fixed_sentence(agency: Agency, junk: bytes) -> None:
    root = (agency.home / "identity" / "root.pem").read_bytes()
    options = (("grpc.enable_http_proxy", 0),)
    with grpc.secure_channel(agency.where.enrolment, grpc.ssl_channel_credentials(root), options) as channel:
        enrol: Any = channel.unary_unary(f"/{ENROLMENT_SERVICE}/Enrol")
        with pytest.raises(grpc.RpcError) as caught:
            enrol(junk, timeout=10)
    assert (caught.value.code(), caught.value.details()) == (STATUS.INVALID_ARGUMENT, MALFORMED)


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("ipv4:192.0.2.7:443", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:443", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:443", "2001:db8:1:2::/64"),
        ("ipv6:[::ffff:192.0.2.7]:443", "192.0.2.7"),
        ("ipv6:[fe80::1%25eth0]:443", "fe80::/64"),
        ("unix:", "unix"),
    ],
)
def test_an_address_is_what_one_subscriber_has(peer: str, source: str) -> None:
    assert source_of(peer) == source


def tls_of(address: str, root: Path, version: ssl.TLSVersion) -> str:
    """The version that a stranger's handshake at `address` ends with, or "" if it is refused."""
    context = ssl.create_default_context(cafile=str(root))
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    try:
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return str(secure.version())
    except OSError:
        return ""


@pytest.mark.deploy
def test_the_process_starts_says_so_and_stops_on_sigterm(tmp_path: Path) -> None:
    agency = make_agency(tmp_path)
    config = settings_file(agency.home, ServerConfig(home=str(agency.home), enrolment_port=0, lane_port=0))
    argv = [sys.executable, "-m", "sovfed.server.registry.service", "--home", str(agency.home), "--config", str(config)]
    child = subprocess.Popen(
        argv, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)}
    )
    assert child.stderr is not None
    try:
        line = child.stderr.readline()
        assert "ready: enrolment 127.0.0.1:" in line
        assert health(agency).serving
        at, root = line.partition("enrolment ")[2].partition(",")[0], agency.home / "identity" / "root.pem"
        assert tls_of(at, root, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert tls_of(at, root, ssl.TLSVersion.TLSv1_2) == ""
        child.send_signal(signal.SIGTERM)
        assert child.wait(15) == 0
    finally:
        child.kill()
        child.wait()
        child.stderr.close()
    (agency.home / "identity" / "key.pem").chmod(0o644)
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "expected 0600" in refused.stderr
    assert "Traceback" not in refused.stderr
