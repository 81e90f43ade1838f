"""The agency's bells: rung by what the coordinator pushes, once its objects have come, and by runs that start."""

from __future__ import annotations

import asyncio

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskResponse, PushAppMessagesRequest

from sovfed.federation.wire.held import INSTITUTION, App, Bell, Event, Receive, Send
from sovfed.server.network import ringing
from sovfed.server.network.ringing import PULL_MESSAGES, PUSH_MESSAGES, PUSH_OBJECT, START_RUN, Ringing, held_pulls

NODE, OTHER = 2**63 + 11, 12


async def empty(scope: Event, receive: Receive, send: Send) -> None:
    """An app with nothing to say."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def call(app: App, path: str, body: bytes = b"") -> None:
    pending: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Event:
        if not pending:
            await asyncio.Event().wait()
        return pending.pop()

    async def send(_: Event) -> None:
        pass

    length = str(len(body)).encode()
    await app({"type": "http", "path": path, "headers": [(b"content-length", length)]}, receive, send)


def push(*nodes: int) -> bytes:
    heads = [Message(metadata=Metadata(dst_node_id=node, message_id=f"to {node}")) for node in nodes]
    return PushAppMessagesRequest(messages_list=heads).SerializeToString()


def part(object_id: str) -> bytes:
    return PushObjectRequest(object_id=object_id, object_content=b"x").SerializeToString()


def pull(node: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def test_flower_says_nothing_in_no_bytes() -> None:
    """What tells `Held` that there was nothing; were it otherwise, nobody would be kept waiting."""
    assert PullMessagesResponse().SerializeToString() == b""
    assert AcquireTaskResponse().SerializeToString() == b""


def test_a_pull_waits_until_a_message_for_that_node_has_been_pushed_and_its_objects() -> None:
    async def scene() -> None:
        bell = Bell()
        fleet, own = held_pulls(empty, bell), Ringing(empty, bell)
        for node in (NODE, OTHER):
            await call(fleet, PULL_MESSAGES, pull(node))
        asked, other = (asyncio.create_task(call(fleet, PULL_MESSAGES, pull(node))) for node in (NODE, OTHER))
        await asyncio.sleep(3 * ringing.PAUSE_S)
        assert not asked.done()
        await call(own, PUSH_MESSAGES, push(NODE, OTHER))
        for name in ("a record", "the records"):
            await call(own, PUSH_OBJECT, part(name))
        await asyncio.sleep(3 * ringing.PAUSE_S)
        assert not asked.done()
        await call(own, PUSH_OBJECT, part(f"to {NODE}"))
        await asyncio.wait_for(asked, 10)
        assert not other.done()
        other.cancel()

    asyncio.run(scene())


def test_a_message_whose_last_object_does_not_come_is_announced_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ringing, "LONGEST_S", 0.05)

    async def scene() -> None:
        bell = Bell()
        await call(Ringing(empty, bell), PUSH_MESSAGES, push(NODE))
        assert await bell.wait(NODE, 0, 10.0)
        assert bell.rings(NODE) == 1

    asyncio.run(scene())


def test_a_request_that_flower_refuses_rings_for_nobody() -> None:
    async def scene() -> None:
        bell = Bell()
        own = Ringing(empty, bell)
        await call(own, PUSH_MESSAGES, b"\xff\xff no protobuf")
        await asyncio.sleep(2 * ringing.PAUSE_S)
        assert bell.rings(NODE) == 0

    asyncio.run(scene())


def test_the_executor_is_answered_when_a_run_starts() -> None:
    async def scene() -> None:
        own = Ringing(empty, Bell())
        await call(own, ringing.ACQUIRE_TASK)
        waiting = asyncio.create_task(call(own, ringing.ACQUIRE_TASK))
        await asyncio.sleep(0.05)
        await call(own, START_RUN)
        await asyncio.wait_for(waiting, 10)

    asyncio.run(scene())


def test_an_institution_whose_home_runs_twice_is_told_with_both_addresses(caplog: pytest.LogCaptureFixture) -> None:
    """Seen with a copied home: each took the other's messages, and neither side said why."""
    now = 0.0
    doubled = ringing.Doubled(lambda: now)
    for number in range(20):
        now = 10.0 * number
        doubled({INSTITUTION: "hospital-1", "client": (f"10.0.0.{5 + number % 2}", 4000 + number)})
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("hospital-1: two processes ask for its messages at once, from 10.0.0.5, 10.0.0.6:")


def test_one_that_loses_a_connection_now_and_then_does_not_run_twice(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    doubled = ringing.Doubled(lambda: now)
    for number in range(20):
        now = 40.0 * number
        doubled({INSTITUTION: "hospital-1", "client": ("10.0.0.5", 4000 + number)})
    assert not caplog.records
