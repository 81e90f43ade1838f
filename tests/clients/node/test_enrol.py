"""Enrolment from the institution's side: keys stay, what comes back is checked, and an interruption costs nothing."""

from __future__ import annotations

import dataclasses
import json
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.enrolment_fixture import Agency, make_agency

from sovfed.clients.node import executor, gateway, heads, renewal
from sovfed.clients.node.enrol import INSTITUTION_FILE, Fingerprints, Institution, enrol, load_institution
from sovfed.clients.node.renewal import refresh_crl, renew, renew_if_due
from sovfed.federation.certificates import (
    InstitutionNames,
    certificate_fingerprint,
    create_csr,
    create_key,
    create_root,
    key_fingerprint,
    key_from_pem,
    make_crl,
    sign_csr,
    to_der,
    to_pem,
)
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.files import read_private
from sovfed.federation.identity import Trust, load_certificate, node_key_bytes, node_key_digest
from sovfed.federation.renewal import names_of
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import ENROLMENT_SERVICE, Invitation
from sovfed.server.registry import authority, enrolment

NOW = datetime.now(UTC)


@pytest.fixture
def agency(tmp_path: Path) -> Iterator[Agency]:
    found = make_agency(tmp_path)
    with found.run():
        yield found


def test_enrolment_leaves_a_complete_identity(agency: Agency, tmp_path: Path) -> None:
    home = tmp_path / "hospital"
    found = agency.enrol(home, "hospital-1")
    assert found == Institution("hospital-1", "127.0.0.1:8443", agency.where.lane) == load_institution(home)
    identity = home / "identity"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in identity.iterdir()}
    assert modes == {
        "key.pem": 0o600, "node_key": 0o600, "node_key.pub": 0o644, "cert.pem": 0o644, "root.pem": 0o644,
        "crl.pem": 0o644, "institution.json": 0o644,
    }  # fmt: skip
    certificate = load_certificate(identity / "cert.pem")
    peer = Trust(identity).verify(to_der(certificate))
    key = key_from_pem(read_private(identity / "key.pem"), "key.pem")
    assert certificate.public_key() == key.public_key()
    node_key = serialization.load_ssh_private_key((identity / "node_key").read_bytes(), None)
    assert isinstance(node_key, ec.EllipticCurvePrivateKey)
    assert node_key.curve.name == "secp384r1"
    assert (peer.institution, peer.node_key_digest) == ("hospital-1", node_key_digest(node_key.public_key()))
    public = serialization.load_ssh_public_key((identity / "node_key.pub").read_bytes())
    assert public == node_key.public_key()
    assert agency.registered == [(node_key_bytes(node_key.public_key()), "hospital-1")]


def test_no_private_key_leaves_the_institution(agency: Agency, tmp_path: Path) -> None:
    agency.enrol(tmp_path / "hospital", "hospital-1")
    identity = tmp_path / "hospital" / "identity"
    key = key_from_pem(read_private(identity / "key.pem"), "key.pem")
    number = key.private_numbers().private_value.to_bytes(32, "big")
    for home in (agency.home, agency.authority):
        for path in (path for path in home.rglob("*") if path.is_file()):
            assert b"OPENSSH PRIVATE" not in path.read_bytes()
            assert number not in path.read_bytes()


def test_both_fingerprints_are_told_before_the_wait(agency: Agency, tmp_path: Path) -> None:
    told: list[Fingerprints] = []
    with pytest.raises(ServiceError, match=r"not signed yet.*call again"):
        enrol(tmp_path / "hospital", agency.invite("hospital-1"), 0.3, announce=told.append)
    root = load_certificate(agency.authority / "root.pem")
    key = key_from_pem(read_private(tmp_path / "hospital" / "identity" / "key.pem"), "key.pem")
    assert told == [Fingerprints(certificate_fingerprint(root), key_fingerprint(key.public_key()))]
    described = authority.describe(enrolment.wait_for_request(agency.home, "hospital-1", 1))
    assert described == ("institution", "hospital-1", told[0].key), "the authority sees the same key"


def test_an_interrupted_enrolment_goes_on_with_the_same_request(agency: Agency, tmp_path: Path) -> None:
    home, invitation = tmp_path / "hospital", agency.invite("hospital-1")
    with pytest.raises(ServiceError):
        enrol(home, invitation, 0.2)
    key = (home / "identity" / "key.pem").read_bytes()
    with pytest.raises(ServiceError, match="not enrolled"):
        load_institution(home)
    agency.certify("hospital-1")
    assert enrol(home, invitation, 5).name == "hospital-1"
    assert (home / "identity" / "key.pem").read_bytes() == key
    with pytest.raises(IdentityError, match="already enrolled"):
        enrol(home, invitation, 5)


def test_a_home_that_was_off_for_longer_than_its_certificate_lasts_is_enrolled_anew(
    agency: Agency, tmp_path: Path
) -> None:
    """Forty days without power. Nothing renews an ended certificate, and `enrol` said "already enrolled"."""
    home = tmp_path / "hospital"
    agency.enrol(home, "hospital-1")
    with pytest.raises(IdentityError, match="already enrolled as 'hospital-1'"):
        enrol(home, dataclasses.replace(agency.invite("hospital-2"), institution="hospital-1"), 5)
    kept = {path: (home / path).read_bytes() for path in ("identity/key.pem", "secagg/journal")}
    key = key_from_pem(kept["identity/key.pem"], "key")
    request = to_pem(create_csr(key, names_of(load_certificate(home / "identity" / "cert.pem"))))
    past = authority.sign(agency.authority, request, days=30, now=NOW - timedelta(days=40))
    (home / "identity" / "cert.pem").write_bytes(past)
    with pytest.raises(IdentityError, match="already enrolled as 'hospital-1'"):
        enrol(home, agency.invite("hospital-3"), 5)
    enrolment.remove(agency.home, "hospital-1")
    assert agency.enrol(home, "hospital-1").name == "hospital-1"
    assert load_certificate(home / "identity" / "cert.pem").not_valid_after_utc > NOW
    assert {path: (home / path).read_bytes() for path in kept} == kept
    first, second = (key for key, _ in agency.registered)
    assert first != second  # Flower: "Public key already in use."


def test_a_registry_that_is_away_is_waited_for(tmp_path: Path) -> None:
    agency, home = make_agency(tmp_path), tmp_path / "hospital"
    with agency.run():
        invitation = agency.invite("hospital-1")
        with pytest.raises(ServiceError):
            enrol(home, invitation, 0.2)
    with pytest.raises(ServiceError, match="UNAVAILABLE"):
        enrol(home, invitation, 0.3)


def test_a_stolen_invitation_is_noticed_by_both(agency: Agency, tmp_path: Path) -> None:
    invitation = agency.invite("hospital-1")
    with pytest.raises(ServiceError):
        enrol(tmp_path / "thief", invitation, 0.2)
    with pytest.raises(IdentityError, match=r"refused; .* used by another home already"):
        enrol(tmp_path / "hospital", invitation, 5)


def test_an_invitation_with_another_root_is_refused(agency: Agency, tmp_path: Path) -> None:
    invitation = agency.invite("hospital-1")
    _, foreign = create_root("Ministry of Health", NOW)
    with pytest.raises(IdentityError, match="fingerprint"):
        enrol(tmp_path / "a", invitation, 1, authority=certificate_fingerprint(foreign))
    with pytest.raises(ServiceError, match="somebody else answers"):  # not certified by that root
        enrol(tmp_path / "b", dataclasses.replace(invitation, root=to_pem(foreign).decode()), 0.5)
    requests = agency.home / "registry" / "requests"
    assert not requests.exists(), "nothing was shown to a server that did not prove itself"
    root = certificate_fingerprint(load_certificate(agency.authority / "root.pem"))
    with pytest.raises(ServiceError, match="not signed yet"):
        enrol(tmp_path / "c", invitation, 0.2, authority=root.upper())


@pytest.mark.parametrize(
    "change",
    [
        {"token": "short"},
        {"institution": "../../etc"},
        {"root": "junk"},
        {"extra": 1},
        {"expires": "tomorrow"},
        {"institution": None},
    ],
)
def test_a_malformed_invitation_is_refused(agency: Agency, tmp_path: Path, change: dict[str, object]) -> None:
    text = json.dumps(json.loads(agency.invite("hospital-1").to_json()) | change)
    with pytest.raises(IdentityError):
        enrol(tmp_path / "hospital", Invitation.from_json(text), 1)
    assert not (tmp_path / "hospital").exists()


@pytest.mark.parametrize("text", ["", "[]", "null", "{" * 20_000])
def test_a_file_that_is_no_invitation_is_refused(text: str) -> None:
    with pytest.raises(IdentityError, match="invitation"):
        Invitation.from_json(text)


class DishonestRegistry:
    """A server that the root has certified, and that answers an enrolment with whatever `reply` makes of it."""

    def __init__(self, agency: Agency) -> None:
        self.agency = agency
        self.root_key = key_from_pem(read_private(agency.authority / "root.key"), "root.key")
        self.root = load_certificate(agency.authority / "root.pem")

    def certify(self, request: pb.EnrolRequest) -> bytes:
        return to_pem(sign_csr(self.root_key, self.root, request.csr, NOW, 30))

    def crl(self, days_ago: int = 0) -> bytes:
        return to_pem(make_crl(self.root_key, self.root, [], 1, NOW - timedelta(days=days_ago), 7))

    def answer(self, request: pb.EnrolRequest, fault: str) -> pb.EnrolReply:
        reply = pb.EnrolReply(
            certificate=self.certify(request), crl=self.crl(), fleet_address="a:1", lane_address="b:2"
        )
        digest = node_key_digest(serialization.load_pem_public_key(request.node_public_key))  # type: ignore[arg-type]
        if fault == "another key":
            csr = to_pem(create_csr(create_key(), InstitutionNames("hospital-1", digest)))
            reply.certificate = to_pem(sign_csr(self.root_key, self.root, csr, NOW, 30))
        elif fault == "another authority":
            key, root = create_root("Ministry of Health", NOW)
            reply.certificate = to_pem(sign_csr(key, root, request.csr, NOW, 30))
        elif fault == "a stale list":
            reply.crl = self.crl(days_ago=8)
        elif fault == "revoked already":
            certificate = sign_csr(self.root_key, self.root, request.csr, NOW, 30)
            reply.certificate = to_pem(certificate)
            reply.crl = to_pem(make_crl(self.root_key, self.root, [(certificate.serial_number, NOW)], 1, NOW, 7))
        elif fault == "no addresses":
            reply.lane_address = ""
        elif fault == "junk":
            reply.certificate = b"junk"
        elif fault == "too large":
            reply.certificate += b"#" * 70_000
        return reply

    def serve(self, fault: str) -> tuple[grpc.Server, str]:
        server = grpc.server(ThreadPoolExecutor(1), options=(("grpc.so_reuseport", 0),))
        handler = grpc.unary_unary_rpc_method_handler(
            lambda request, _: self.answer(request, fault),
            pb.EnrolRequest.FromString,
            pb.EnrolReply.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(ENROLMENT_SERVICE, {"Enrol": handler}),))
        identity = self.agency.home / "identity"
        pair = (read_private(identity / "key.pem"), (identity / "cert.pem").read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        server.start()
        return server, f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    "fault",
    [
        "none", "another key", "another authority", "a stale list", "revoked already", "no addresses", "junk",
        "too large",
    ],
)  # fmt: skip
def test_what_the_agency_sends_is_used_only_if_it_holds(tmp_path: Path, fault: str) -> None:
    agency, home = make_agency(tmp_path), tmp_path / "hospital"
    server, address = DishonestRegistry(agency).serve(fault)
    try:
        invitation = enrolment.invite(agency.home, "hospital-1", address)
        if fault == "none":
            assert enrol(home, invitation, 5) == Institution("hospital-1", "a:1", "b:2")
            return
        with pytest.raises((IdentityError, ServiceError)):
            enrol(home, invitation, 1)
        assert not {"institution.json", "cert.pem"} & {path.name for path in (home / "identity").iterdir()}
    finally:
        server.stop(0).wait(10)


def test_a_key_that_others_can_read_is_not_enrolled(agency: Agency, tmp_path: Path) -> None:
    home, invitation = tmp_path / "hospital", agency.invite("hospital-1")
    with pytest.raises(ServiceError):
        enrol(home, invitation, 0.2)
    for name in ("key.pem", "node_key"):
        (home / "identity" / name).chmod(0o644)
        with pytest.raises(IdentityError, match="expected 0600"):
            enrol(home, invitation, 1)
        (home / "identity" / name).chmod(0o600)


def test_renewal_keeps_the_key_and_moves_the_end(agency: Agency, tmp_path: Path) -> None:
    home, invitation = tmp_path / "hospital", agency.invite("hospital-1")
    helper = threading.Thread(target=agency.certify, args=("hospital-1", 30))
    helper.start()
    enrol(home, invitation, 20)
    helper.join()
    identity = home / "identity"
    key, before = (identity / "key.pem").read_bytes(), load_certificate(identity / "cert.pem")
    with pytest.raises(ServiceError, match="not signed yet"):
        renew(home, 0.2)
    assert load_certificate(identity / "cert.pem") == before
    agency.certify("hospital-1")
    until = renew(home, 10)
    after = load_certificate(identity / "cert.pem")
    assert (until, key) == (after.not_valid_after_utc, (identity / "key.pem").read_bytes())
    assert until > before.not_valid_after_utc + timedelta(days=300)
    assert Trust(identity).verify(to_der(after)).institution == "hospital-1"
    assert not (identity / "renewal.csr").exists()


def test_the_revocation_list_is_fetched_and_checked(agency: Agency, tmp_path: Path) -> None:
    agency.enrol(tmp_path / "a", "hospital-1")
    agency.enrol(tmp_path / "b", "hospital-2")
    other = to_der(load_certificate(tmp_path / "b" / "identity" / "cert.pem"))
    trust = Trust(tmp_path / "a" / "identity")
    assert trust.verify(other).institution == "hospital-2"
    agency.publish_crl(authority.revoke(agency.authority, "hospital-2"))
    assert refresh_crl(tmp_path / "a") == 2
    with pytest.raises(IdentityError, match="revoked"):
        trust.verify(other)
    with pytest.raises(IdentityError, match="refused"):
        refresh_crl(tmp_path / "b")


def test_lists_renewals_and_heads_go_to_the_lane_that_client_yaml_names(
    agency: Agency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: only the lane itself did; after an agency had moved an institution was in runs, for 30 days at most."""
    home, stop, asked = tmp_path / "a", threading.Event(), list[tuple[object, ...]]()
    lane = agency.enrol(home, "hospital-1").lane_address
    former = json.dumps(dataclasses.asdict(Institution("hospital-1", "127.0.0.1:8443", "127.0.0.1:9")))
    (home / "identity" / INSTITUTION_FILE).write_text(former)
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9"):
        refresh_crl(home)
    assert refresh_crl(home, lane=lane) == 1
    assert renew_if_due(home, lane=lane, now=NOW + timedelta(days=360)) is None  # the authority has not signed
    with pytest.raises(ServiceError, match="not signed yet"):
        renew(home, 0.2, lane=lane)

    def note(*values: object) -> None:
        asked.append(values)

    for module, name in ((renewal, "keep_fresh"), (heads, "keep_exchanging")):
        monkeypatch.setattr(module, name, note)
    monkeypatch.setattr(executor, "run_executor", lambda *_: None)
    gateway.run(home, ClientConfig(home=str(home), runtime_port=1, lane_address=lane), stop)
    assert [values[-2:] for values in asked] == [(None, lane)] * 2


@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")  # typer, which flwr imports, on click 8.5
def test_flower_reads_the_node_key(agency: Agency, tmp_path: Path) -> None:
    from argparse import Namespace

    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    agency.enrol(tmp_path / "hospital", "hospital-1")
    path = tmp_path / "hospital" / "identity" / "node_key"
    arguments = Namespace(auth_supernode_private_key=str(path), auth_supernode_public_key=None)
    keys = _try_setup_client_authentication(arguments)
    assert keys is not None
    public = keys[1]
    assert agency.registered == [(node_key_bytes(public), "hospital-1")]
