"""The relay: who may join, what a join is worth, and that it holds nothing of what it passes on."""

from __future__ import annotations

import hashlib
import logging
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.lane_fixture import Agency, Gateway, Stream, agency, open_call, wait_until

from sovfed.federation.certificates import InstitutionNames
from sovfed.federation.wire.lane_end import (
    ATTACH,
    CHANNEL_OPTIONS,
    CONTROL,
    JOIN,
    NODE_KEY,
    RUN_KEY,
    SESSION_KEY,
    TOKEN_KEY,
)
from sovfed.federation.wire.lane_pb2 import LaneNode, LaneRun, LaneRunReply
from sovfed.server.network.lane import REFUSAL

TOKENS = ["a" * 43, "b" * 43]
OWNER = b"o" * 32


class Scene:
    """An agency with two institutions, and both sides' streams."""

    def __init__(self, found: Agency) -> None:
        self.agency, self._channels = found, list[grpc.Channel]()
        self.nodes = [int(gateway.node.node_id) for gateway in found.gateways]
        self.uds = grpc.insecure_channel(f"unix:{found.home / 'lane.sock'}", options=CHANNEL_OPTIONS)
        self.control = Stream(self.uds, CONTROL)
        assert self.register() is False

    def register(
        self, control: Stream | None = None, *, owner: bytes = OWNER, tokens: list[str] = TOKENS, over: bool = False
    ) -> bool:
        gateways = self.agency.gateways
        nodes = [
            LaneNode(
                node_id=gateway.node.node_id,
                node_key_digest=hashlib.sha256(gateway.node.public_key).hexdigest(),
                token_sha256=hashlib.sha256(token.encode()).digest(),
            )
            for gateway, token in zip(gateways, tokens, strict=False)
        ]
        control = control or self.control
        control.send(LaneRun(run="r1", owner=owner, nodes=nodes, over=over).SerializeToString())
        return LaneRunReply.FromString(control.receive()).known

    def attach(self, index: int) -> Stream:
        return Stream(self.uds, ATTACH, (RUN_KEY, "r1"), (NODE_KEY, str(self.nodes[index])))

    def join(self, gateway: Gateway, index: int, proof: tuple[str, str], run: str = "r1") -> Stream:
        identity = [(gateway.home / "identity" / name).read_bytes() for name in ("root.pem", "key.pem", "cert.pem")]
        credentials = grpc.ssl_channel_credentials(*identity)
        self._channels.append(grpc.secure_channel(self.agency.address, credentials, CHANNEL_OPTIONS))
        return Stream(self._channels[-1], JOIN, (RUN_KEY, run), (NODE_KEY, str(self.nodes[index])), proof)

    def close(self) -> None:
        for channel in (*self._channels, self.uds):
            channel.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with agency(tmp_path, nodes=2) as found:
        made = Scene(found)
        try:
            yield made
        finally:
            made.close()


def refused(stream: Stream) -> bool:
    """Whether the stream ends with the one fixed sentence."""
    return stream.code() is grpc.StatusCode.PERMISSION_DENIED and stream.call.details() == REFUSAL


def test_frames_pass_both_ways_unread(scene: Scene) -> None:
    near, far = scene.attach(0), scene.join(scene.agency.gateways[0], 0, (TOKEN_KEY, TOKENS[0]))
    near.send(b"no frame of ours")
    far.send(b"\x00" * 1000)
    assert (far.receive(), near.receive()) == (b"no frame of ours", b"\x00" * 1000)


def test_a_node_joins_with_its_own_certificate_and_token_only(scene: Scene) -> None:
    mine, other = scene.agency.gateways
    assert refused(scene.join(mine, 0, (TOKEN_KEY, "x" * 43)))
    assert refused(scene.join(mine, 0, (TOKEN_KEY, "")))
    assert refused(scene.join(mine, 0, (TOKEN_KEY, TOKENS[1])))
    assert refused(scene.join(other, 0, (TOKEN_KEY, TOKENS[0]))), "a stolen token without its certificate"
    assert refused(scene.join(mine, 1, (TOKEN_KEY, TOKENS[1]))), "another node's place"
    assert refused(scene.join(mine, 0, (TOKEN_KEY, TOKENS[0]), run="r2")), "another run"
    assert refused(scene.join(mine, 0, (SESSION_KEY, TOKENS[0])))
    assert scene.join(mine, 0, (TOKEN_KEY, TOKENS[0])).session(), "and after all that the token still holds"


def test_a_node_that_is_not_of_the_run_is_refused(scene: Scene) -> None:
    stranger = scene.agency.enrol(7)
    scene.nodes.append(int(stranger.node.node_id))
    assert refused(scene.join(stranger, 2, (TOKEN_KEY, TOKENS[0])))


def test_the_refusal_tells_nothing_and_the_log_tells_why(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert refused(scene.join(scene.agency.gateways[1], 0, (TOKEN_KEY, TOKENS[0])))
    assert "hospital-1: the certificate is bound to another node key" in caplog.text
    assert TOKENS[0] not in caplog.text


def test_a_token_is_spent_once_and_its_session_reconnects(scene: Scene) -> None:
    mine, other = scene.agency.gateways
    first = scene.join(mine, 0, (TOKEN_KEY, TOKENS[0]))
    session = first.session()
    assert refused(scene.join(mine, 0, (TOKEN_KEY, TOKENS[0])))
    assert refused(scene.join(other, 0, (SESSION_KEY, session))), "a stolen session without its certificate"
    second = scene.join(mine, 0, (SESSION_KEY, session))
    assert second.session() == session
    assert first.code() is grpc.StatusCode.UNAVAILABLE, "one stream per node: the newer takes the place"


def test_an_offer_with_a_fresh_token_ends_the_session_before(scene: Scene) -> None:
    mine = scene.agency.gateways[0]
    stream = scene.join(mine, 0, (TOKEN_KEY, TOKENS[0]))
    session = stream.session()
    assert scene.register(tokens=["c" * 43]) is True
    assert stream.code() is grpc.StatusCode.UNAVAILABLE
    assert refused(scene.join(mine, 0, (SESSION_KEY, session)))
    assert scene.join(mine, 0, (TOKEN_KEY, "c" * 43)).session() != session


def test_a_revoked_certificate_is_refused_and_its_open_stream_is_cut(scene: Scene) -> None:
    found, mine = scene.agency, scene.agency.gateways[0]
    stream = scene.join(mine, 0, (TOKEN_KEY, TOKENS[0]))
    session = stream.session()
    names = InstitutionNames("hospital-0", hashlib.sha256(mine.node.public_key).hexdigest())
    old = found.authority.load(mine.home)
    found.authority.revoke(found.home, old.serial_number)
    assert refused(stream)
    assert refused(scene.join(mine, 0, (SESSION_KEY, session)))
    found.authority.write(mine.home, names)
    assert scene.join(mine, 0, (SESSION_KEY, session)).session() == session, "a renewed certificate takes it up again"


def test_no_client_certificate_no_connection(scene: Scene) -> None:
    root = (scene.agency.home / "identity" / "root.pem").read_bytes()
    with grpc.secure_channel(scene.agency.address, grpc.ssl_channel_credentials(root), CHANNEL_OPTIONS) as channel:
        assert Stream(channel, JOIN, (RUN_KEY, "r1")).code() is grpc.StatusCode.UNAVAILABLE


def test_the_coordinators_methods_are_not_served_to_the_network(scene: Scene) -> None:
    mine = scene.agency.gateways[0]
    scene.join(mine, 0, (TOKEN_KEY, TOKENS[0])).session()
    for method in (CONTROL, ATTACH):
        stream = Stream(scene._channels[-1], method, (RUN_KEY, "r1"), (NODE_KEY, str(scene.nodes[0])))
        assert stream.code() is grpc.StatusCode.UNIMPLEMENTED


def test_when_one_side_breaks_the_other_is_told(scene: Scene) -> None:
    near, far = scene.attach(0), scene.join(scene.agency.gateways[0], 0, (TOKEN_KEY, TOKENS[0]))
    near.send(b"x")
    assert far.receive() == b"x"
    near.call.cancel()
    assert far.code() is grpc.StatusCode.UNAVAILABLE


def test_closing_the_run_ends_its_streams_in_order(scene: Scene) -> None:
    mine = scene.agency.gateways[0]
    far = scene.join(mine, 0, (TOKEN_KEY, TOKENS[0]))
    session = far.session()
    assert scene.register(tokens=[], over=True) is True
    assert far.code() is grpc.StatusCode.OK
    assert refused(scene.join(mine, 0, (SESSION_KEY, session)))
    assert scene.agency.relay.runs == {}


def test_a_run_outlives_its_coordinators_connection_by_the_grace(scene: Scene) -> None:
    session = scene.join(scene.agency.gateways[0], 0, (TOKEN_KEY, TOKENS[0])).session()
    scene.control.call.cancel()
    again = Stream(scene.uds, CONTROL)
    assert scene.register(again, tokens=[]) is True, "taken up again by its owner: sessions hold"
    assert scene.join(scene.agency.gateways[0], 0, (SESSION_KEY, session)).session() == session
    time.sleep(1.2)
    assert scene.agency.relay.runs == {"r1": 0}
    again.call.cancel()
    wait_until(lambda: scene.agency.relay.runs == {})


def test_another_coordinator_takes_a_run_over_and_every_session_ends(scene: Scene) -> None:
    stream = scene.join(scene.agency.gateways[0], 0, (TOKEN_KEY, TOKENS[0]))
    session = stream.session()
    successor = Stream(scene.uds, CONTROL)
    assert scene.register(successor, owner=b"p" * 32) is False
    assert stream.code() is grpc.StatusCode.OK
    assert refused(scene.join(scene.agency.gateways[0], 0, (SESSION_KEY, session)))
    scene.control.call.cancel()
    time.sleep(1.2)
    assert scene.agency.relay.runs == {"r1": 0}, "the predecessor's end does not end the successor's run"


@pytest.mark.parametrize("request_", [b"\xff", b"", LaneRun(run="r", owner=b"short").SerializeToString()])
def test_a_malformed_registration_is_refused(scene: Scene, request_: bytes) -> None:
    control = Stream(scene.uds, CONTROL)
    control.send(request_)
    assert control.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_slow_reader_holds_up_the_sender_and_not_the_relays_memory(scene: Scene) -> None:
    near, far = scene.attach(0), scene.join(scene.agency.gateways[0], 0, (TOKEN_KEY, TOKENS[0]))
    chunk, taken = b"x" * (1 << 20), 0
    done = threading.Event()

    def produce() -> Iterator[bytes]:
        nonlocal taken
        while taken < 2000 and not done.is_set():
            taken += 1
            yield chunk

    near.send(b"first")
    assert far.receive() == b"first"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    near.call.cancel()
    assert far.code() is grpc.StatusCode.UNAVAILABLE
    far = scene.join(scene.agency.gateways[0], 0, (SESSION_KEY, far.session()))
    call = open_call(scene.uds, ATTACH, produce(), (RUN_KEY, "r1"), (NODE_KEY, str(scene.nodes[0])))
    assert far.receive() == chunk
    time.sleep(1.0)
    assert taken < 64, "the sender stands still while nobody reads"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10  # KiB
    for _ in range(100):
        assert far.receive() == chunk
    done.set()
    call.cancel()
