"""The gate by itself, with real certificates: who comes through, with what, and what a refusal tells."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.server.agency import Authority, Institution, make_home, make_institution

from sovfed.federation.files import write_atomic
from sovfed.federation.identity import Trust, load_certificate, node_key_digest
from sovfed.server import gate as gate_module
from sovfed.server.gate import CERTIFICATE, FLEET_PATHS, MAX_REQUEST_BYTES, PUSH_MESSAGES, PUSH_OBJECT, FleetGate

MIB = 2**20
PULL = "/v1/fleet/pull-messages"


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
        body = iter([b""] if chunks is None else chunks)

        async def receive() -> dict[str, Any]:
            piece = next(body, None)
            return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

        async def send(event: Any) -> None:
            events.append(event)

        asyncio.run(self.gate(scope, receive, send))
        return events[0]["status"], events[1]["body"]


def der(institution: Institution) -> bytes:
    return load_certificate(institution.folder / "cert.pem").public_bytes(Encoding.DER)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    authority = Authority()
    identity = make_home(authority, tmp_path / "agency") / "identity"
    hospital = make_institution(authority, tmp_path / "hospital", "hospital-1")
    other = make_institution(authority, tmp_path / "other", "hospital-2")
    clock, app = Clock(datetime.now(UTC)), App()
    gate = FleetGate(app, Trust(identity, clock), max_message_bytes=2 * MIB)
    return Bench(authority, identity, clock, app, gate, hospital, other)


def test_an_enrolled_institution_comes_through_with_its_body(bench: Bench) -> None:
    assert bench.call(PULL, [b"some", b" protobuf"]) == (200, b"ok")
    assert bench.app.bodies == [b"some protobuf"]


@pytest.mark.parametrize("path", sorted(FLEET_PATHS))
def test_every_fleet_call_of_a_node_is_let_through(bench: Bench, path: str) -> None:
    assert bench.call(path)[0] == 200


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


def test_an_endless_body_is_cut_off_at_the_bound(bench: Bench) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while True:
            sent += MIB
            yield bytes(MIB)

    assert bench.call(chunks=endless())[0] == 413
    assert sent == MAX_REQUEST_BYTES + MIB


def test_a_message_has_a_size_whatever_number_of_chunks_carries_it(bench: Bench) -> None:
    allowed = (2 * MIB + MAX_REQUEST_BYTES) // (5 * MIB)
    chunk = bytes(5 * MIB)
    bench.call(PUSH_MESSAGES)
    assert [bench.call(PUSH_OBJECT, [chunk])[0] for _ in range(allowed + 1)] == [200] * allowed + [413]
    bench.call(PUSH_MESSAGES)  # the next message starts from nothing
    assert bench.call(PUSH_OBJECT, [chunk])[0] == 200


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
