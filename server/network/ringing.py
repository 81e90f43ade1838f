"""The agency's bells: who asks for messages, or for runs to start, is answered when there are some.

The coordinator comes by the loopback, nodes by the network; one process serves both, so that one can ring for the
other (`federation/wire/held.py`). It rings for a node when its message is here with its objects: one after another, so
that nodes do not crowd in while the coordinator still pushes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from google.protobuf.message import DecodeError

from sovfed.federation.wire.held import INSTITUTION, Bell, Held, read_whole, replay

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.federation.wire.held import App, Event, Receive, Send

PULL_MESSAGES: Final = "/v1/fleet/pull-messages"
PUSH_MESSAGES: Final = "/v1/runtime/push-messages"
PUSH_OBJECT: Final = "/v1/runtime/push-object"
START_RUN: Final = "/v1/control/start-run"
ACQUIRE_TASK: Final = "/v1/runtime/acquire-task"
ACQUIRE_HOLD_S: Final = 1.0  # the executor has more to look after than new runs
EXECUTOR: Final = 0
PAUSE_S: Final = 0.05  # after a message's last object, which Flower pushes two at a time
LONGEST_S: Final = 5.0  # a message whose last object does not come is announced all the same
SMALL_BYTES: Final = 65_536  # a message's last object is its head
TIMES, WITHIN_S, AGAIN_S = 6, 120.0, 3600.0  # that a node asks twice at once before it is told, and until told again
log = logging.getLogger("sovfed.superlink")


def held_pulls(app: App, bell: Bell) -> App:
    """`app`, where a node's request for messages waits until there is one. The gate has tied its body to the node."""

    def asker(body: bytes) -> int:
        return int(PullMessagesRequest.FromString(body).node.node_id)

    return Held(app, bell, PULL_MESSAGES, asker, doubled=Doubled())


class Doubled:
    """Tells of an institution whose home runs twice: two processes go on asking for the same node's messages.

    Each takes what was meant for the other, so a round lacks it now and then and nothing else tells why. One that asks
    anew, since it has lost a connection that still seems to stand here, does so once in a while.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, deque[tuple[float, str]]] = {}
        self._told: dict[str, float] = {}

    def __call__(self, scope: Event) -> None:
        name, host, now = str(scope.get(INSTITUTION, "a node")), str((scope.get("client") or ("?",))[0]), self._clock()
        seen = self._seen.setdefault(name, deque(maxlen=TIMES))
        seen.append((now, host))
        if len(seen) < TIMES or now - seen[0][0] > WITHIN_S or now - self._told.get(name, -AGAIN_S) < AGAIN_S:
            return
        self._told[name] = now
        log.error(
            "%s: two processes ask for its messages at once, from %s: its home runs twice, as on a machine that was "
            "cloned, or beside a restored copy; have it stop one of them, and keep the other's ledger",
            name, ", ".join(sorted({host for _, host in seen})),
        )  # fmt: skip


class Ringing:
    """The agency's own side of `app`: it rings for nodes that are sent messages, and for the executor that runs."""

    def __init__(self, app: App, bell: Bell) -> None:
        self._runs = Bell()
        self._app, self._bell = Held(app, self._runs, ACQUIRE_TASK, lambda _: EXECUTOR, ACQUIRE_HOLD_S), bell
        self._coming: dict[str, int] = {}  # messages whose last object has not come → their node

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if path == PUSH_MESSAGES or (path == PUSH_OBJECT and self._coming and _is_small(scope)):
            body = await read_whole(receive)
            if body is None:
                return
            await self._app(scope, replay(body, receive), send)
            with contextlib.suppress(DecodeError):  # Flower has refused it
                (self._announced if path == PUSH_MESSAGES else self._came)(body)
            return
        await self._app(scope, receive, send)
        if path == START_RUN:
            self._runs.ring([EXECUTOR])

    def _announced(self, body: bytes) -> None:
        for message in PushAppMessagesRequest.FromString(body).messages_list:
            self._coming[message.metadata.message_id] = int(message.metadata.dst_node_id)
            asyncio.get_running_loop().call_later(LONGEST_S, self._ring, message.metadata.message_id)

    def _came(self, body: bytes) -> None:
        """The last object of a message is the message itself, without what it holds."""
        object_id = PushObjectRequest.FromString(body).object_id
        if object_id in self._coming:
            asyncio.get_running_loop().call_later(PAUSE_S, self._ring, object_id)

    def _ring(self, message_id: str) -> None:
        node = self._coming.pop(message_id, None)
        if node is not None:
            self._bell.ring([node])


def _is_small(scope: Event) -> bool:
    length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return length.isdigit() and int(length) <= SMALL_BYTES
