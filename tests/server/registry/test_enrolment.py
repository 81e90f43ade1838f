"""Enrolment over real TLS: invitations, requests and certificates, and all that is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.enrolment_fixture import STATUS, Agency, Applicant, make_agency, refusal
from tests.server.agency import server_config, superlink, wait_until

from sovfed.federation.certificates import (
    InstitutionNames,
    ServerNames,
    create_csr,
    create_key,
    create_root,
    sign_csr,
    to_pem,
)
from sovfed.federation.config import TrackingConfig
from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.identity import node_key_bytes, node_key_digest
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.loopback import ensure_secret
from sovfed.server.network import superlink as network
from sovfed.server.registry import authority, enrolment

NOW = datetime.now(UTC)


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
