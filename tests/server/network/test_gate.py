"""The gate by itself, with real certificates: who comes through, with what, and what a refusal tells."""

from __future__ import annotations

import asyncio
import dataclasses
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.node_pb2 import Node
from google.protobuf.message import Message
from tests.server.agency import Authority, Institution, make_home, make_institution
from tests.server.fleet_fixture import RUN, FleetDatabase, make_template, push, sha256, upload

from sovfed.federation.files import write_atomic
from sovfed.federation.identity import Trust, load_certificate, node_key_digest
from sovfed.server.network import fleet_calls
from sovfed.server.network import gate as gate_module
from sovfed.server.network.fleet_calls import (
    ACTIVATE,
    CALLS,
    CONFIRM,
    MAX_OBJECTS,
    MAX_REPLIES,
    MAX_REQUEST_BYTES,
    PULL_OBJECT,
    PUSH_MESSAGES,
    PUSH_OBJECT,
    FleetRules,
)
from sovfed.server.network.fleet_state import FleetState
from sovfed.server.network.gate import CERTIFICATE, FLEET_PATHS, FleetGate

MIB = 2**20
PULL = "/v1/fleet/pull-messages"
OWN, OTHER = 2**63 + 11, 12  # node ids of the bench's institutions
ASKED, ASKED_OTHER = sha256("to hospital-1"), sha256("to hospital-2")


@dataclass
class Clock:
    now: datetime

    def __call__(self) -> datetime:
        return self.now


@dataclass
class App:
    """Stands where Flower's app does: remembers the bodies that reach it."""

    bodies: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


@dataclass
class Bench:
    """A gate before an `App`, an authority and two enrolled institutions."""

    authority: Authority
    identity: Path
    clock: Clock
    app: App
    gate: FleetGate
    hospital: Institution
    other: Institution
    database: FleetDatabase

    def say(self, path: str, request: Message) -> int:
        """The status that hospital-1 gets for `request`."""
        return self.call(path, [request.SerializeToString()])[0]

    def call(
        self,
        path: str = PULL,
        chunks: Iterator[bytes] | list[bytes] | None = None,
        *,
        method: str = "POST",
        certificate: bytes | None = b"hospital",
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of the answer; `certificate` b"hospital" is the first institution's."""
        shown = der(self.hospital) if certificate == b"hospital" else certificate
        named = [(b"flwr-public-key", b64encode(self.hospital.public_key))] if headers is None else headers
        scope = {"type": "http", "method": method, "path": path, "headers": named, CERTIFICATE: shown}
        events: list[dict[str, Any]] = []
        whole = [PullMessagesRequest(node=Node(node_id=OWN)).SerializeToString()]
        body = iter(whole if chunks is None else chunks)

        async def receive() -> dict[str, Any]:
            piece = next(body, None)
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def send(event: Any) -> None:
            events.append(event)

        asyncio.run(self.gate(scope, receive, send))
        return events[0]["status"], events[1]["body"]


def der(institution: Institution) -> bytes:
    return load_certificate(institution.folder / "cert.pem").public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_template(tmp_path_factory.mktemp("flower") / "state.db")


@pytest.fixture
def bench(tmp_path: Path, template: Path) -> Bench:
    authority = Authority()
    identity = make_home(authority, tmp_path / "agency") / "identity"
    hospital = make_institution(authority, tmp_path / "hospital", "hospital-1")
    other = make_institution(authority, tmp_path / "other", "hospital-2")
    clock, app = Clock(datetime.now(UTC)), App()
    database = FleetDatabase.copy(template, tmp_path / "state.db")
    database.add_node(OWN, hospital.public_key)
    database.add_node(OTHER, other.public_key)
    database.ask(ASKED, OWN)
    database.ask(ASKED_OTHER, OTHER)
    gate = FleetGate(app, Trust(identity, clock), FleetRules(FleetState(database.path), 2 * MIB))
    return Bench(authority, identity, clock, app, gate, hospital, other, database)


def test_an_enrolled_institution_comes_through_with_its_body(bench: Bench) -> None:
    body = PullMessagesRequest(node=Node(node_id=OWN)).SerializeToString()
    assert bench.call(PULL, [body[:3], body[3:]]) == (200, b"ok")
    assert bench.app.bodies == [body]


def requests(bench: Bench, own: int) -> dict[str, Message]:
    """What a SuperNode with node id `own` says in each call, after it was sent the message `ASKED`."""
    special: dict[str, Message] = {
        ACTIVATE: ActivateNodeRequest(public_key=bench.hospital.public_key),
        "/v1/fleet/deactivate-node": DeactivateNodeRequest(node_id=own),
        PUSH_MESSAGES: push(own, ASKED),
        PUSH_OBJECT: upload(own, "session", 100),
        PULL_OBJECT: PullObjectRequest(node=Node(node_id=own), run_id=RUN, object_id=ASKED),
        CONFIRM: ConfirmMessageReceivedRequest(node=Node(node_id=own), run_id=RUN, message_object_id=ASKED),
    }
    return {path: special.get(path) or kind(node=Node(node_id=own)) for path, kind in CALLS.items()}


@pytest.mark.parametrize("path", sorted(FLEET_PATHS))
def test_every_fleet_call_of_a_node_is_let_through(bench: Bench, path: str) -> None:
    if path == PUSH_OBJECT:
        bench.database.reply(sha256("reply"), ASKED, OWN, "session")
    assert bench.say(path, requests(bench, OWN)[path]) == 200


@pytest.mark.parametrize("path", sorted(FLEET_PATHS - {ACTIVATE}))
@pytest.mark.parametrize("node", [OTHER, 0, 1, 999])
def test_no_call_is_made_in_the_name_of_another_node(bench: Bench, path: str, node: int) -> None:
    assert bench.say(path, requests(bench, node)[path]) == 401
    assert not bench.app.bodies


def test_no_node_of_another_key_is_activated(bench: Bench) -> None:
    assert bench.say(ACTIVATE, ActivateNodeRequest(public_key=bench.other.public_key)) == 403


@pytest.mark.parametrize("path", sorted(FLEET_PATHS))
def test_a_body_that_is_no_such_request_is_refused(bench: Bench, path: str) -> None:
    assert bench.call(path, [b"\xff\xff\xff"])[0] == 400


def test_a_node_that_is_not_registered_any_more_is_refused(bench: Bench, tmp_path: Path, template: Path) -> None:
    database = FleetDatabase.copy(template, tmp_path / "other.db")
    database.add_node(OWN, bench.hospital.public_key, "unregistered")
    gate = FleetGate(bench.app, bench.gate._trust, FleetRules(FleetState(database.path), MIB))
    assert dataclasses.replace(bench, gate=gate).say(PULL, PullMessagesRequest(node=Node(node_id=OWN))) == 401


@pytest.mark.parametrize(
    ("forged", "how"),
    [
        (push(OWN, "", src=1, dst=OTHER), "an instruction to a peer in the agency's name"),
        (push(OWN, "", dst=OTHER), "an instruction to a peer in its own name"),
        (push(OWN, "", src=1, dst=OWN), "an instruction to itself"),
        (push(OWN, ""), "a message to the agency that nobody asked for"),
        (push(OWN, ASKED, src=1), "a reply in the agency's name"),
        (push(OWN, ASKED, src=OTHER), "a reply in a peer's name"),
        (push(OWN, ASKED_OTHER, src=OTHER), "a peer's reply, its message's id guessed"),
        (push(OWN, ASKED_OTHER), "a reply to what a peer was asked"),
        (push(OWN, sha256("never sent")), "a reply to what nobody was asked"),
        (push(OWN, ASKED, dst=OTHER), "a reply to a peer"),
        (push(OWN, ASKED, run=7), "a reply in another run"),
        (push(OWN, ASKED, copies=2), "two messages, of which Flower would take one"),
        (push(OWN, ASKED, copies=0), "none"),
        (push(OWN, ASKED, root=sha256("x")), "objects that are not the message's"),
        (push(OWN, ASKED, children=[ASKED_OTHER]), "a peer's message as an object of its own"),
        (push(OWN, ASKED, children=[ASKED]), "its own request as an object of its own"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_what_a_node_pushes_is_its_own_reply_to_its_own_message(
    bench: Bench, forged: PushMessagesRequest, how: str
) -> None:
    assert bench.say(PUSH_MESSAGES, forged) == 403, how
    assert not bench.app.bodies


def test_a_message_is_answered_once_and_a_retry_is_the_same_reply(bench: Bench) -> None:
    bench.database.reply(sha256("reply"), ASKED, OWN)
    assert bench.say(PUSH_MESSAGES, push(OWN, ASKED)) == 200
    assert bench.say(PUSH_MESSAGES, push(OWN, ASKED, message_id=sha256("second thoughts"))) == 403


def test_a_reply_does_not_take_the_place_of_a_peers(bench: Bench) -> None:
    bench.database.reply(sha256("peer's"), ASKED_OTHER, OTHER)
    assert bench.say(PUSH_MESSAGES, push(OWN, ASKED, message_id=sha256("peer's"))) == 403


def test_a_message_head_holds_no_content(bench: Bench) -> None:
    assert bench.say(PUSH_MESSAGES, push(OWN, ASKED, group="x" * 5000)) == 413
    assert bench.say(PUSH_MESSAGES, push(OWN, ASKED, group="x" * 14 * MIB)) == 413


def test_objects_are_taken_for_an_announced_reply_only(bench: Bench) -> None:
    bench.database.reply(sha256("reply"), ASKED, OWN, "mine")
    bench.database.reply(sha256("peer's"), ASKED_OTHER, OTHER, "theirs")
    assert bench.say(PUSH_OBJECT, upload(OWN, "mine", 100)) == 200
    assert bench.say(PUSH_OBJECT, upload(OWN, "mine", 100, run=7)) == 403
    for session in ("theirs", "unknown", ""):  # Flower takes an object without a session for whoever awaits it
        assert bench.say(PUSH_OBJECT, upload(OWN, session, 100)) == 403, session


def test_objects_still_come_after_the_coordinator_has_seen_the_reply(bench: Bench) -> None:
    bench.database.reply(sha256("reply"), ASKED, OWN, "mine")
    bench.database.fetch(ASKED)
    assert bench.say(PUSH_OBJECT, upload(OWN, "mine", 100)) == 200


def test_objects_are_read_of_a_nodes_own_messages_only(bench: Bench) -> None:
    """By the hash alone Flower would confirm any guess at what a peer's reply says."""
    bench.database.reply(sha256("peer's"), ASKED_OTHER, OTHER)
    bench.database.store(sha256("count=41"), b"41", parent=sha256("peer's"))
    bench.database.store(sha256("model"), b"model", parent=ASKED)

    def pull(object_id: str, run: int = RUN) -> int:
        return bench.say(PULL_OBJECT, PullObjectRequest(node=Node(node_id=OWN), run_id=run, object_id=object_id))

    assert [pull(sha256("model")), pull(ASKED)] == [200, 200]
    assert pull(sha256("model"), run=7) == 403
    for hidden in (sha256("count=41"), sha256("peer's"), ASKED_OTHER, sha256("count=42"), ""):
        assert pull(hidden) == 403, hidden


def test_a_peers_message_is_not_confirmed(bench: Bench) -> None:
    confirm = ConfirmMessageReceivedRequest(node=Node(node_id=OWN), run_id=RUN, message_object_id=ASKED_OTHER)
    assert bench.say(CONFIRM, confirm) == 403


def announced(bench: Bench, number: int) -> str:
    """The `number`th message of the run is sent to hospital-1 and its reply announced; the reply's id, if accepted."""
    asked, reply = sha256(f"asked {number}"), sha256(f"reply {number}")
    bench.database.ask(asked, OWN)
    if bench.say(PUSH_MESSAGES, push(OWN, asked, message_id=reply)) != 200:
        return ""
    bench.database.reply(reply, asked, OWN, f"session {number}")
    return reply


def test_what_lies_of_a_node_in_the_database_is_bounded_over_all_its_messages(bench: Bench) -> None:
    """Announcing the next reply does not start the account anew, and neither does the coordinator's first look."""
    allowed, sent = 2 * 2 * MIB + MAX_REQUEST_BYTES, 0
    for number in range(4):
        reply = announced(bench, number)
        while bench.say(PUSH_OBJECT, upload(OWN, f"session {number}", 4 * MIB)) == 200:
            bench.database.store(sha256(f"object {sent}"), bytes(4 * MIB), parent=reply)
            sent += 1
        bench.database.fetch(sha256(f"asked {number}"))
    assert sent == 4 == allowed // (4 * MIB) - 1  # a fifth would not fit beside the replies' heads
    for number in range(sent):
        bench.database.drop(sha256(f"object {number}"))  # the coordinator has fetched them
    assert bench.say(PUSH_OBJECT, upload(OWN, "session 3", 4 * MIB)) == 200


def test_a_run_of_many_quick_rounds_is_not_held_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies that the coordinator has fetched count no more once they have had time to come."""
    monkeypatch.setattr(fleet_calls, "MAX_REPLIES", 16)
    now = [0.0]
    bench = dataclasses.replace(
        bench,
        gate=FleetGate(bench.app, bench.gate._trust, FleetRules(FleetState(bench.database.path), MIB, lambda: now[0])),
    )
    for number in range(40):
        now[0] += fleet_calls.SETTLE_S / 15
        reply = announced(bench, number)
        assert reply, number
        bench.database.fetch(sha256(f"asked {number}"))
        bench.database.drop(reply)


def test_replies_are_bounded_in_number(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_calls, "MAX_REPLIES", 3)
    assert [announced(bench, number) != "" for number in range(5)] == [True] * 3 + [False] * 2
    bench.database.fetch(sha256("asked 0"))
    bench.database.drop(sha256("reply 0"))
    assert not announced(bench, 5), "what was announced a moment ago may still come"
    assert MAX_REPLIES >= 128


def test_objects_are_bounded_in_number(bench: Bench) -> None:
    def children(count: int) -> list[str]:
        return [sha256(f"child {number}") for number in range(count)]

    assert bench.say(PUSH_MESSAGES, push(OWN, ASKED, children=children(MAX_OBJECTS - 1))) == 200
    assert bench.say(PUSH_MESSAGES, push(OWN, ASKED, children=children(MAX_OBJECTS))) == 413


def test_a_state_that_cannot_be_read_lets_nobody_through(bench: Bench) -> None:
    bench.database.path.unlink()
    assert bench.call()[0] == 503
    assert not bench.app.bodies


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run", "/v1/control/stream-logs", "/v1/runtime/acquire-task", "/v1/fleet/register-node",
        "/v1/fleet/unregister-node", "/v1/fleet/", "/v1/fleet/pull-messages/", "/V1/fleet/pull-messages", "/docs",
        "/health", "//v1/fleet/pull-messages", "/v1/fleet/../control/start-run", "/v1/responses", "", "*",
    ],
)  # fmt: skip
def test_every_other_path_is_not_found(bench: Bench, path: str) -> None:
    assert bench.call(path) == (404, b'{"detail": "Not Found"}')
    assert not bench.app.bodies


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "CONNECT"])
def test_every_other_method_is_not_found(bench: Bench, method: str) -> None:
    assert bench.call(method=method)[0] == 404


@pytest.mark.parametrize("certificate", [None, b"", b"not a certificate"])
def test_no_certificate_is_refused_whatever_is_asked(bench: Bench, certificate: bytes | None) -> None:
    assert bench.call(certificate=certificate) == (403, b'{"detail": "Forbidden"}')
    assert bench.call("/docs", certificate=certificate)[0] == 403


def test_a_certificate_of_another_authority_is_refused(bench: Bench, tmp_path: Path) -> None:
    digest = node_key_digest(bench.hospital.node_key.public_key())
    stranger = make_institution(Authority(), tmp_path / "stranger", "hospital-1", bound_to=digest)
    assert bench.call(certificate=der(stranger))[0] == 403


def test_the_servers_own_certificate_is_no_clients(bench: Bench) -> None:
    own = load_certificate(bench.identity / "cert.pem").public_bytes(Encoding.DER)
    assert bench.call(certificate=own)[0] == 403


def test_a_stolen_node_key_is_refused_with_another_certificate(bench: Bench) -> None:
    assert bench.call(certificate=der(bench.other))[0] == 403


@pytest.mark.parametrize("shown", [[], [b""], [b"!!"], [b"twice"]])
def test_the_node_key_must_be_named_exactly_once(bench: Bench, shown: list[bytes]) -> None:
    own = b64encode(bench.hospital.public_key)
    values = [own, own] if shown == [b"twice"] else shown
    assert bench.call(headers=[(b"flwr-public-key", value) for value in values])[0] == 403


def test_a_revocation_holds_from_the_next_request(bench: Bench) -> None:
    assert bench.call()[0] == 200
    bench.authority.revoked.append((bench.hospital.serial, bench.authority.now))
    write_atomic(bench.identity / "crl.pem", bench.authority.crl())
    assert bench.call()[0] == 403


def test_without_a_fresh_revocation_list_nobody_comes_through(bench: Bench) -> None:
    bench.clock.now += timedelta(days=29)
    assert bench.call()[0] == 200
    bench.clock.now += timedelta(days=1, minutes=1)
    assert bench.call()[0] == 403
    bench.clock.now -= timedelta(days=2)
    (bench.identity / "crl.pem").unlink()
    assert bench.call()[0] == 403


def test_a_claim_of_ten_gigabytes_is_refused_unread(bench: Bench) -> None:
    def never() -> bytes:
        raise AssertionError("the body was read")

    named = [(b"flwr-public-key", b64encode(bench.hospital.public_key)), (b"content-length", b"10000000000")]
    assert bench.call(chunks=iter(never, b""), headers=named) == (413, b'{"detail": "Content Too Large"}')


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"99999999999999999999999999"])
def test_a_length_that_is_no_size_is_refused(bench: Bench, length: bytes) -> None:
    named = [(b"flwr-public-key", b64encode(bench.hospital.public_key)), (b"content-length", length)]
    assert bench.call(headers=named)[0] == 413


@pytest.mark.parametrize("path", sorted(FLEET_PATHS))
def test_an_endless_body_is_cut_off_at_the_bound(bench: Bench, path: str) -> None:
    sent, limit = 0, fleet_calls.body_limit(path)

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += limit // 16
            yield bytes(limit // 16)

    assert bench.call(path, chunks=endless())[0] == 413
    assert sent == limit + limit // 16
    assert limit <= (MAX_REQUEST_BYTES if path == PUSH_OBJECT else MIB)


def test_a_body_that_does_not_come_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "BODY_TIMEOUT_S", 0.05)
    answered: list[Any] = []
    scope = {
        "type": "http", "method": "POST", "path": PULL, CERTIFICATE: der(bench.hospital),
        "headers": [(b"flwr-public-key", b64encode(bench.hospital.public_key))],
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def send(event: Any) -> None:
        answered.append(event)

    asyncio.run(bench.gate(scope, receive, send))
    assert answered[0]["status"] == 408


def test_a_websocket_is_closed(bench: Bench) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(event: Any) -> None:
        sent.append(event)

    asyncio.run(bench.gate({"type": "websocket", "path": PULL, "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_refusal_tells_the_log_why_and_the_peer_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    status, body = bench.call(certificate=der(bench.other))
    assert "hospital-2: the request names another node key" in caplog.text
    assert (status, body) == (403, b'{"detail": "Forbidden"}')


def test_a_hostile_path_reaches_the_log_escaped_and_short(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.call("/v1/\nCRITICAL forged" + "x" * 1000)
    assert "\nCRITICAL" not in caplog.text
    assert len(caplog.text) < 400


@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_of_another_day_is_refused_in_words(bench: Bench, caplog: pytest.LogCaptureFixture, days: int) -> None:
    stamp = (datetime.now(UTC) + timedelta(days=days)).isoformat().encode()
    named = [(b"flwr-public-key", b64encode(bench.hospital.public_key)), (b"flwr-timestamp", stamp)]
    assert bench.call(headers=named)[0] == 401
    assert "hospital-1: its clock says" in caplog.text and "one of them is wrong" in caplog.text
    named[1] = (b"flwr-timestamp", datetime.now(UTC).isoformat().encode())
    assert bench.call(headers=named)[0] == 200
