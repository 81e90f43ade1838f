"""The registry over real TLS: who gets in at which endpoint, and what the refused are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.enrolment_fixture import Agency, call, make_agency
from tests.server.agency import server_config, superlink, wait_until

from sovfed.federation.certificates import (
    InstitutionNames,
    ServerNames,
    create_csr,
    create_key,
    create_root,
    key_from_pem,
    key_to_pem,
    make_crl,
    sign_csr,
    to_pem,
)
from sovfed.federation.config import ServerConfig, TrackingConfig
from sovfed.federation.errors import ConfigError, IdentityError, ServiceError
from sovfed.federation.files import private_directory, read_private, write_atomic, write_private
from sovfed.federation.host.settings import settings_file
from sovfed.federation.identity import load_certificate, node_key_bytes, node_key_digest
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import ENROLMENT_SERVICE, REGISTRY_SERVICE, TOLD
from sovfed.federation.wire.loopback import ensure_secret
from sovfed.server.network import superlink as network
from sovfed.server.network.guard import BUSY, FAILED, LATE, MALFORMED, MESSAGE_S, PER_SOURCE, REFUSED, source_of
from sovfed.server.registry import authority, enrolment

Pair = tuple[bytes, bytes]
STATUS = grpc.StatusCode
NOW = datetime.now(UTC)


@pytest.fixture
def agency(tmp_path: Path) -> Iterator[Agency]:
    found = make_agency(tmp_path)
    with found.run():
        yield found


class Applicant:
    """An institution that asks at the enrolment port by hand, so that it can ask wrongly."""

    def __init__(self, agency: Agency, name: str = "hospital-1") -> None:
        self.agency, self.name = agency, name
        self.key, self.node_key = create_key(), ec.generate_private_key(ec.SECP384R1())
        self.token = agency.invite(name).token

    def csr(self, name: str | None = None, digest: str | None = None) -> bytes:
        names = InstitutionNames(name or self.name, digest or node_key_digest(self.node_key.public_key()))
        return to_pem(create_csr(self.key, names))

    def request(self, csr: bytes, token: str | None = None, node_key: bytes | None = None) -> pb.EnrolRequest:
        return pb.EnrolRequest(
            token=token or self.token,
            csr=csr,
            node_public_key=node_key or node_key_bytes(self.node_key.public_key()),
            node_signature=self.node_key.sign(csr, ec.ECDSA(hashes.SHA256())),
        )

    def ask(self, request: pb.EnrolRequest) -> pb.EnrolReply:
        root = (self.agency.home / "identity" / "root.pem").read_bytes()
        reply: pb.EnrolReply = call(
            self.agency.where.enrolment, f"/{ENROLMENT_SERVICE}/Enrol", request, pb.EnrolReply, root
        )
        return reply

    def enrolled(self, days: int = 365) -> Pair:
        """Key and certificate (PEM) after an enrolment without a fault."""
        csr = self.csr()
        assert self.ask(self.request(csr)).certificate == b""
        self.agency.certify(self.name, days)
        return key_to_pem(self.key), self.ask(self.request(csr)).certificate


def refusal(applicant: Applicant, request: pb.EnrolRequest) -> grpc.StatusCode:
    """The status of a request that must fail; it says nothing but a fixed sentence."""
    with pytest.raises(grpc.RpcError) as caught:
        applicant.ask(request)
    if caught.value.code() is STATUS.PERMISSION_DENIED:
        assert caught.value.details() == REFUSED or (caught.value.details() or "").startswith(TOLD)
    return caught.value.code()


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


def test_an_invited_institution_gets_its_certificate_and_the_addresses(agency: Agency) -> None:
    applicant = Applicant(agency)
    csr = applicant.csr()
    assert applicant.ask(applicant.request(csr)) == pb.EnrolReply()
    certificate = agency.certify("hospital-1")
    reply = applicant.ask(applicant.request(csr))
    assert reply.certificate == certificate
    assert reply.crl == (agency.home / "identity" / "crl.pem").read_bytes()
    assert (reply.lane_address, reply.fleet_address) == (agency.where.lane, "127.0.0.1:8443")
    assert agency.registered == [(node_key_bytes(applicant.node_key.public_key()), "hospital-1")]
    assert not (agency.home / "registry" / "requests" / "hospital-1.csr").exists()


def test_the_agency_keeps_no_token(agency: Agency) -> None:
    token = Applicant(agency).token
    stored = b"".join(path.read_bytes() for path in (agency.home / "registry").rglob("*") if path.is_file())
    assert token.encode() not in stored
    assert stat.S_IMODE((agency.home / "registry" / "enrolment.db").stat().st_mode) == 0o600


def test_a_token_is_spent_by_its_first_request_and_by_no_bad_one(agency: Agency) -> None:
    applicant = Applicant(agency)
    assert refusal(applicant, applicant.request(applicant.csr("hospital-2"))) is STATUS.PERMISSION_DENIED
    csr = applicant.csr()
    applicant.ask(applicant.request(csr))
    assert applicant.ask(applicant.request(csr)) == pb.EnrolReply(), "the same request again is answered again"
    assert refusal(applicant, applicant.request(applicant.csr())) is STATUS.PERMISSION_DENIED
    thief = Applicant.__new__(Applicant)
    thief.__dict__.update(applicant.__dict__, key=create_key(), node_key=ec.generate_private_key(ec.SECP384R1()))
    assert refusal(thief, thief.request(thief.csr())) is STATUS.PERMISSION_DENIED
    seen = thief.request(csr)  # the very request, were it overheard, with the thief's node key
    assert refusal(thief, seen) is STATUS.PERMISSION_DENIED


def test_of_many_requests_at_once_one_has_the_token(agency: Agency) -> None:
    applicant = Applicant(agency)
    requests = [applicant.request(applicant.csr()) for _ in range(8)]

    def ask(request: pb.EnrolRequest) -> bool:
        try:
            applicant.ask(request)
        except grpc.RpcError as error:
            return error.code() is not STATUS.PERMISSION_DENIED
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(ask, requests)) == [False] * 7 + [True]


def test_wrong_requests_are_refused_and_a_good_one_still_passes(agency: Agency, tmp_path: Path) -> None:
    applicant, other = Applicant(agency), Applicant(agency, "hospital-2")
    good = applicant.csr()
    signed_by_other = applicant.request(good)
    signed_by_other.node_signature = other.node_key.sign(good, ec.ECDSA(hashes.SHA256()))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    p256 = create_key().public_key().public_bytes(serialization.Encoding.PEM, spki)
    bad = {
        "unknown token": applicant.request(good, token="0" * 64),
        "token of another": applicant.request(good, token=other.token),
        "no token": applicant.request(good, token=" "),
        "name of another": applicant.request(applicant.csr("hospital-2")),
        "a server's request": applicant.request(to_pem(create_csr(applicant.key, ServerNames(("localhost",))))),
        "digest of another key": applicant.request(applicant.csr(digest="ab" * 32)),
        "another node key": applicant.request(good, node_key=node_key_bytes(other.node_key.public_key())),
        "a node key of another curve": applicant.request(good, node_key=p256),
        "a node key that is none": applicant.request(good, node_key=b"junk"),
        "not signed by the node key": signed_by_other,
        "no request": applicant.request(b""),
        "a large request": applicant.request(good + b"#" * 9000),
    }
    for why, request in bad.items():
        assert refusal(applicant, request) is STATUS.PERMISSION_DENIED, why
    assert applicant.ask(applicant.request(good)) == pb.EnrolReply()


def test_a_message_over_64_kib_is_refused_before_it_is_read(agency: Agency) -> None:
    applicant = Applicant(agency)
    assert refusal(applicant, applicant.request(applicant.csr() + b"#" * 70_000)) is STATUS.RESOURCE_EXHAUSTED
    assert applicant.ask(applicant.request(applicant.csr())) == pb.EnrolReply()


def test_an_expired_invitation_is_refused_and_a_fresh_one_replaces_it(agency: Agency) -> None:
    applicant = Applicant(agency)
    week_ago = time.time() - 7 * 86_400 - 1
    applicant.token = enrolment.invite(agency.home, "hospital-1", agency.where.enrolment, now=week_ago).token
    assert refusal(applicant, applicant.request(applicant.csr())) is STATUS.PERMISSION_DENIED
    fresh = Applicant(agency)
    assert fresh.ask(fresh.request(fresh.csr())) == pb.EnrolReply()


def test_one_node_key_serves_one_institution(agency: Agency) -> None:
    first, second = Applicant(agency), Applicant(agency, "hospital-2")
    first.enrolled()
    second.node_key = first.node_key
    assert refusal(second, second.request(second.csr())) is STATUS.PERMISSION_DENIED


def test_an_enrolled_name_is_not_invited_again_until_it_is_removed(agency: Agency) -> None:
    Applicant(agency).enrolled()
    with pytest.raises(IdentityError, match="already enrolled"):
        agency.invite("hospital-1")
    assert enrolment.remove(agency.home, "hospital-1") == 2**63 + 1
    authority.revoke(agency.authority, "hospital-1")
    assert Applicant(agency).enrolled()
    with pytest.raises(IdentityError, match="not known"):
        enrolment.remove(agency.home, "hospital-9")


def test_a_certificate_that_answers_no_request_is_not_accepted(agency: Agency) -> None:
    applicant = Applicant(agency)
    applicant.ask(applicant.request(csr := applicant.csr()))
    other_key = to_pem(
        create_csr(create_key(), InstitutionNames("hospital-1", node_key_digest(applicant.node_key.public_key())))
    )
    foreign_key, foreign_root = create_root("Ministry of Health", NOW)
    wrong = {
        "another key": authority.sign(agency.authority, other_key),
        "no request": authority.sign(agency.authority, applicant.csr("hospital-3")),
        "another authority": to_pem(sign_csr(foreign_key, foreign_root, csr, NOW, 30)),
        "junk": b"junk",
    }
    for why, pem in wrong.items():
        with pytest.raises(IdentityError):
            pytest.fail(f"{why}: {enrolment.accept_certificate(agency.home, pem, agency.register)}")
    authority.revoke(agency.authority, "hospital-1")
    good = authority.sign(agency.authority, csr)
    assert enrolment.accept_certificate(agency.home, good, agency.register) == "hospital-1"
    assert len(agency.registered) == 1


def test_a_registration_that_fails_leaves_the_request_waiting(agency: Agency) -> None:
    applicant = Applicant(agency)
    applicant.ask(applicant.request(csr := applicant.csr()))
    certificate = authority.sign(agency.authority, csr)

    def down(_: bytes, __: str) -> int:
        raise ServiceError("superlink is not running")

    with pytest.raises(ServiceError):
        enrolment.accept_certificate(agency.home, certificate, down)
    assert applicant.ask(applicant.request(csr)) == pb.EnrolReply()
    enrolment.accept_certificate(agency.home, certificate, agency.register)
    assert applicant.ask(applicant.request(csr)).certificate == certificate


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


@pytest.mark.deploy
@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # typer, which flwr imports, on click 8.5
def test_acceptance_registers_the_node_with_flower_once(tmp_path: Path) -> None:
    agency = make_agency(tmp_path)
    config = server_config(agency.home)
    settings = {"server": asdict(config), "tracking": asdict(TrackingConfig())}
    write_private(agency.home / "server.json", json.dumps(settings).encode())
    with agency.run(config), superlink(agency.home, config) as (_, control):
        applicant = Applicant(agency)
        applicant.ask(applicant.request(csr := applicant.csr()))
        public = node_key_bytes(applicant.node_key.public_key())
        node_id = control.register_node(public, "hospital-1")  # an acceptance that was broken off here
        certificate = authority.sign(agency.authority, csr)
        assert enrolment.accept_certificate(agency.home, certificate) == "hospital-1"
        assert [(member.institution, member.node_id) for member in enrolment.members(agency.home)] == [
            ("hospital-1", node_id)
        ]
        other = Applicant(agency, "hospital-2")
        other.ask(other.request(csr := other.csr()))
        enrolment.accept_certificate(agency.home, authority.sign(agency.authority, csr))
        assert {node.node_id for node in control.list_nodes()} == {
            member.node_id for member in enrolment.members(agency.home)
        }


@pytest.mark.deploy
@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # as above
def test_nobody_need_be_admitted_anew_where_flowers_database_is_lost(tmp_path: Path) -> None:
    """It said "admit it again", and `admit` that it is enrolled already."""
    agency = make_agency(tmp_path)
    config = server_config(agency.home)
    settings = {"server": asdict(config), "tracking": asdict(TrackingConfig())}
    write_private(agency.home / "server.json", json.dumps(settings).encode())
    with agency.run(config), superlink(agency.home, config) as (_, control):
        applicant = Applicant(agency)
        applicant.ask(applicant.request(csr := applicant.csr()))
        enrolment.accept_certificate(agency.home, authority.sign(agency.authority, csr))
        (before,) = control.list_nodes()
    shutil.rmtree(agency.home / "superlink")
    with superlink(agency.home, config) as (_, control):
        wait_until(lambda: len(control.list_nodes()) == 1, 20, "its node is registered")
        (after,) = control.list_nodes()
        assert (after.public_key, after.name) == (before.public_key, "hospital-1") and after.node_id != before.node_id
        wait_until(lambda: enrolment.members(agency.home)[0].node_id == after.node_id, 20, "the roster has it")


@pytest.mark.deploy
@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # as above
def test_nodes_that_are_lost_are_registered_however_late_the_superlink_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One try came too early on a busy machine, and the institution stayed away until the next start."""
    agency = make_agency(tmp_path)
    config = server_config(agency.home)
    with agency.run(config):
        applicant = Applicant(agency)
        applicant.ask(applicant.request(csr := applicant.csr()))
        enrolment.accept_certificate(agency.home, authority.sign(agency.authority, csr), agency.register)
    monkeypatch.setattr(network, "ENLIST_S", (0.01, 0.2))
    ensure_secret(private_directory(agency.home / "secrets") / "loopback.secret")
    enlisting = threading.Thread(target=asyncio.run, args=(network._enlist_lost(agency.home, config.control_port),))
    enlisting.start()
    wait_until(lambda: caplog.text.count("are not registered yet") >= 3, 30, "it has tried and tried again")
    with superlink(agency.home, config) as (_, control):
        enlisting.join(20)
        assert not enlisting.is_alive()
        assert "hospital-1: its node was not in Flower's database" in caplog.text
        assert [node.node_id for node in control.list_nodes()] == [enrolment.members(agency.home)[0].node_id]


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
