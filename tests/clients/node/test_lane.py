"""The institution's end: whom it connects to, what it answers, and what a hostile coordinator can make it do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import threading
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from tests.lane_fixture import MAX_BYTES, RUN_ID, Agency, Authority, Stream, agency, wait_until

from sovfed.clients.node.lane import LaneClient
from sovfed.federation.certificates import InstitutionNames, ServerNames
from sovfed.federation.errors import WIRE_SENTENCES
from sovfed.federation.messages import ProfileRequest
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.wire.flower import new_message, to_records
from sovfed.federation.wire.lane import DATA, HELLO, Frame, Outgoing, Receiver, Sender, parse_frame
from sovfed.federation.wire.lane_codec import pack, unpack
from sovfed.federation.wire.lane_end import ATTACH, CONTROL, NODE_KEY, RUN_KEY, session_number
from sovfed.federation.wire.lane_pb2 import LaneNode, LaneRun

TOKEN = "t" * 43
PROFILE = to_records(ProfileRequest(run="r1", task="digits"))


class Coordinator:
    """The far end of one node's lane, frame by frame."""

    def __init__(self, found: Agency) -> None:
        gateway = found.gateways[0]
        self.agency, self.node_id = found, int(gateway.node.node_id)
        self.channel = grpc.insecure_channel(f"unix:{found.home / 'lane.sock'}")
        self.control = Stream(self.channel, CONTROL)
        self.sender, self.receiver = Sender(16, 1 << 30), Receiver(MAX_BYTES)
        node = LaneNode(
            node_id=self.node_id,
            node_key_digest=hashlib.sha256(gateway.node.public_key).hexdigest(),
            token_sha256=hashlib.sha256(TOKEN.encode()).digest(),
        )
        self.control.send(LaneRun(run="r1", owner=b"o" * 32, nodes=[node]).SerializeToString())
        self.control.receive()

    def attach(self) -> Stream:
        return Stream(self.channel, ATTACH, (RUN_KEY, "r1"), (NODE_KEY, str(self.node_id)))

    def meet(self) -> Stream:
        """A stream on which both ends have said hello."""
        stream = self.attach()
        stream.send(self.receiver.hello(session_number(TOKEN)))
        hello = parse_frame(stream.receive())
        assert (hello.kind, hello.size) == (HELLO, session_number(TOKEN))
        self.sender.resume(hello.sequence, hello.offset, hello.ack)
        return stream

    def ask(self, stream: Stream, message: FlowerMessage) -> None:
        self.sender.push(pack(message))
        while (frame := self.sender.next_frame(self.receiver.consumed)) is not None:
            stream.send(frame)

    def answer(self, stream: Stream) -> FlowerMessage:
        while True:
            frame = parse_frame(stream.receive())
            if frame.kind == DATA and (data := self.receiver.accept(frame)) is not None:
                self.receiver.consume()
                return unpack(data)

    def profile(self, run_id: int = RUN_ID, node_id: int = 0) -> FlowerMessage:
        found = new_message(PROFILE, run_id=run_id, node_id=node_id or self.node_id, kind="query.profile", group="0")
        found.metadata.__dict__["_message_id"] = f"{run_id}-{node_id}"
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Coordinator]:
    with agency(tmp_path, nodes=1) as found:
        made = Coordinator(found)
        try:
            yield made
        finally:
            made.channel.close()


def opened(scene: Coordinator, address: str = "", **options: str) -> LaneClient:
    gateway = scene.agency.gateways[0]
    gateway.start(**options)
    assert gateway.lane is not None
    assert gateway.lane.open(scene.agency.offer(gateway, TOKEN, address), gateway.context())
    return gateway.lane


def running(lane: LaneClient) -> bool:
    return any(not task.done() for task in lane._lanes.values())


def test_a_message_is_answered_by_the_installed_app(scene: Coordinator) -> None:
    opened(scene)
    stream = scene.meet()
    scene.ask(stream, scene.profile())
    reply = scene.answer(stream)
    assert reply.metadata.reply_to_message_id == f"{RUN_ID}-0"
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id, reply.has_content()) == (scene.node_id, 1, True)


def test_messages_for_another_run_or_node_never_reach_the_app(
    scene: Coordinator, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    gateway = scene.agency.gateways[0]
    lane = opened(scene)

    def note(message: FlowerMessage, context: Context) -> FlowerMessage:
        seen.append(message.metadata.message_id)
        return gateway.app(message, context)

    lane._app = note
    stream = scene.meet()
    with caplog.at_level(logging.WARNING):
        scene.ask(stream, scene.profile(run_id=1))
        scene.ask(stream, scene.profile(node_id=5))
        noise = Outgoing((b"\xff" * 20,))
        scene.sender.push(noise)
        wait_until(lambda: caplog.text.count("a message was refused") == 2)
        stream.receive()  # the acknowledgement
        scene.sender.acknowledge(2)
        scene.ask(stream, scene.profile())
        scene.answer(stream)
    assert seen == [f"{RUN_ID}-0"]
    assert caplog.text.count("a message was refused") == 3


def test_an_app_that_raises_sends_a_fixed_sentence(scene: Coordinator) -> None:
    lane = opened(scene)

    def fail(message: FlowerMessage, context: Context) -> FlowerMessage:
        raise RuntimeError("patient Jane Doe")

    lane._app = fail
    stream = scene.meet()
    scene.ask(stream, scene.profile())
    error = scene.answer(stream).error
    assert (error.code, error.reason) == (2, WIRE_SENTENCES["failed"])


def test_a_reply_larger_than_the_bound_becomes_an_error(scene: Coordinator) -> None:
    lane = opened(scene)
    lane._app = lambda message, context: FlowerMessage(
        RecordDict({"large": ConfigRecord({"text": "x" * 100})}), reply_to=message
    )
    lane._max_message_bytes = 100
    stream = scene.meet()
    scene.ask(stream, scene.profile())
    assert scene.answer(stream).error.code == 4  # REPLY_MESSAGE_UNAVAILABLE


def test_a_claim_of_ten_gigabytes_ends_the_stream_without_allocation(scene: Coordinator) -> None:
    lane = opened(scene)
    stream = scene.meet()
    tracemalloc.start()
    try:
        stream.send(Frame(DATA, 1, 0, 10 << 30, 0, memoryview(b"x" * 1000)).to_bytes())
        assert stream.code() is grpc.StatusCode.UNAVAILABLE
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
    assert running(lane), "the institution comes back for the coordinator to do better"
    stream = scene.meet()
    scene.ask(stream, scene.profile())
    assert scene.answer(stream).has_content()


@pytest.mark.parametrize(
    "bad", [b"", b"noise", Frame(HELLO, 1, 0, 5, 0).to_bytes(), Frame(HELLO, 9, 0, 0, 0).to_bytes()]
)
def test_a_peer_that_does_not_say_the_right_hello_is_left(scene: Coordinator, bad: bytes) -> None:
    opened(scene)
    stream = scene.attach()
    stream.send(bad)
    stream.receive()  # its hello
    assert stream.code() is grpc.StatusCode.UNAVAILABLE
    scene.meet()


def test_a_coordinator_that_takes_no_replies_stops_the_work(scene: Coordinator) -> None:
    """Not more than the window is accepted, and not more than a reply or two held, however many messages are sent."""
    done: list[str] = []
    gateway = scene.agency.gateways[0]
    lane = opened(scene)

    def note(message: FlowerMessage, context: Context) -> FlowerMessage:
        done.append(message.metadata.message_id)
        return gateway.app(message, context)

    lane._app = note
    stream = scene.meet()
    for _ in range(10):
        scene.sender.push(pack(scene.profile()))
    deadline = time.monotonic() + 1.0
    received = threading.Event()

    def read() -> None:
        with contextlib.suppress(grpc.RpcError):
            for data in stream.call:
                scene.sender.acknowledge(parse_frame(data).ack)
                received.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while time.monotonic() < deadline:
        if (frame := scene.sender.next_frame(0)) is not None:
            stream.send(frame)
        received.wait(0.01)
        received.clear()
    assert len(done) <= 4
    stream.call.cancel()
    reader.join(5)


def test_the_end_of_the_run_ends_the_lane(scene: Coordinator) -> None:
    lane = opened(scene)
    scene.meet()
    scene.control.send(LaneRun(run="r1", owner=b"o" * 32, over=True).SerializeToString())
    wait_until(lambda: not running(lane))


def test_a_refused_node_stops_and_waits_for_a_new_offer(scene: Coordinator) -> None:
    gateway = scene.agency.gateways[0]
    gateway.start()
    assert gateway.lane is not None
    assert gateway.lane.open(scene.agency.offer(gateway, "x" * 43), gateway.context())
    wait_until(lambda: gateway.lane is not None and not running(gateway.lane))
    assert gateway.lane.open(scene.agency.offer(gateway, TOKEN), gateway.context())
    scene.meet()


def test_offers_of_another_address_are_declined(scene: Coordinator) -> None:
    gateway = scene.agency.gateways[0]
    gateway.start(address="lane.example.org:8445")
    assert gateway.lane is not None
    assert not gateway.lane.open(scene.agency.offer(gateway, TOKEN), gateway.context())
    assert not running(gateway.lane)


def held(scene: Coordinator) -> tuple[LaneClient, asyncio.Task[None]]:
    """A lane that is up, and the task that keeps it."""
    lane = opened(scene)
    scene.meet()
    return lane, lane._lanes["r1"]


@pytest.mark.parametrize(
    "changed",
    [
        {"run": "r2"}, {"run_id": RUN_ID + 1}, {"node_id": 7}, {"token": "x" * 43}, {"address": "127.0.0.1:1"},
        {"now": time.time() + 60},
    ],
    ids=lambda changed: next(iter(changed)),
)  # fmt: skip
def test_an_offer_that_was_signed_for_anything_else_leaves_the_lane_alone(
    scene: Coordinator, changed: dict[str, Any]
) -> None:
    """The signature of one offer under another: for another run, node, token, place or time."""
    lane, task = held(scene)
    gateway = scene.agency.gateways[0]
    same: dict[str, Any] = {"token": "n" * 43, "now": time.time() + 1}
    wanted, other = scene.agency.offer(gateway, **same), scene.agency.offer(gateway, **(same | changed))
    assert not lane.open(dataclasses.replace(wanted, signature=other.signature), gateway.context())
    assert lane._lanes == {"r1": task}
    assert not task.done()
    assert lane.open(wanted, gateway.context()), "a newer one of the agency's does take its place"
    wait_until(task.cancelled)


@pytest.mark.parametrize("signer", ["institution", "stranger", "nobody"])
def test_an_offer_by_anyone_but_the_agency_leaves_the_lane_alone(
    scene: Coordinator, signer: str, tmp_path: Path
) -> None:
    lane, task = held(scene)
    found, gateway = scene.agency, scene.agency.gateways[0]
    stranger = Authority(datetime.now(UTC))
    stranger.write(tmp_path / "stranger", ServerNames(("127.0.0.1",)))
    found.authority.write(tmp_path / "peer", InstitutionNames("hospital-9", "0" * 64))
    identity = load_identity({"institution": tmp_path / "peer"}.get(signer, tmp_path / "stranger") / "identity")
    offer = found.offer(gateway, "n" * 43, now=time.time() + 1, identity=identity)
    if signer == "nobody":
        offer = dataclasses.replace(offer, certificate=np.zeros(0, np.uint8), signature=np.zeros(0, np.uint8))
    assert not lane.open(offer, gateway.context())
    with_the_agencys = dataclasses.replace(offer, certificate=np.frombuffer(found.signer.certificate, np.uint8))
    assert not lane.open(with_the_agencys, gateway.context())
    assert lane._lanes == {"r1": task}
    assert not task.done()


def test_an_offer_that_is_repeated_or_older_leaves_the_lane_alone(scene: Coordinator) -> None:
    gateway, now = scene.agency.gateways[0], time.time()
    first, second = (scene.agency.offer(gateway, token, now=now + wait) for token, wait in (("a" * 43, 0), (TOKEN, 1)))
    gateway.start()
    lane = gateway.lane
    assert lane is not None
    assert lane.open(first, gateway.context())
    assert lane.open(second, gateway.context())
    scene.meet()
    assert not lane.open(second, gateway.context())
    assert not lane.open(first, gateway.context())
    assert running(lane)


@pytest.mark.parametrize("seconds", [-601, 601])
def test_an_offer_of_another_hour_is_refused(scene: Coordinator, seconds: float) -> None:
    gateway = scene.agency.gateways[0]
    gateway.start()
    assert gateway.lane is not None
    assert not gateway.lane.open(scene.agency.offer(gateway, TOKEN, now=time.time() + seconds), gateway.context())


def test_an_offer_of_a_revoked_agency_is_refused(scene: Coordinator) -> None:
    found, gateway = scene.agency, scene.agency.gateways[0]
    found.authority.revoke(gateway.home, found.authority.load(found.home).serial_number)
    gateway.start()
    assert gateway.lane is not None
    assert not gateway.lane.open(found.offer(gateway, TOKEN), gateway.context())


@pytest.mark.parametrize("names", [ServerNames(("lane.example.org",)), InstitutionNames("hospital-9", "0" * 64)])
def test_a_server_of_another_name_is_not_talked_to(
    scene: Coordinator, names: ServerNames | InstitutionNames, caplog: pytest.LogCaptureFixture
) -> None:
    found = scene.agency
    found.stop()
    found.authority.write(found.home, names)
    found.start()
    with caplog.at_level(logging.INFO):
        lane = opened(scene)
        wait_until(lambda: "stream broken (UNAVAILABLE)" in caplog.text)
    assert running(lane)
    assert "no such run" not in caplog.text, "no call got as far as the relay, which would have refused it"


def test_a_server_of_another_authority_is_not_talked_to(
    scene: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Same name, same address, valid under its own root: the institution's pinned root does not know it."""
    with agency(tmp_path / "other", nodes=0) as impostor, caplog.at_level(logging.INFO):
        lane = opened(scene, address=impostor.address)
        wait_until(lambda: "stream broken (UNAVAILABLE)" in caplog.text)
        assert running(lane)
        assert "no such run" not in caplog.text
