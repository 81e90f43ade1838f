"""The agency's bells: rung by what the coordinator pushes, once its objects have come, and by runs that start."""

from __future__ import annotations

import asyncio

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskResponse, PushAppMessagesRequest

from sovfed.federation.wire.held import App, Bell, Event, Receive, Send
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
