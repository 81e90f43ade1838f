"""What a node may say in each fleet call: only in its own name, only about what was sent to it, and only so much.

Flower ties the `node` of a request to the node key, and the gate the node key to the certificate. Here the rest of the
body is tied to that node: who a message is from, whom it answers, which upload an object belongs to, which message an
object is read from. Flower itself stores a message without `reply_to_message_id` as an instruction of the coordinator
to any node (`fleet_handlers.push_messages`), and gives any object to whoever names its hash.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import DecodeError, Message

from sovfed.federation.wire.flower import SERVER_NODE_ID
from sovfed.server.network.fleet_state import FleetState

MAX_REQUEST_BYTES: Final = 16 * 2**20  # Flower cuts objects into chunks of 5 MiB
MAX_ANNOUNCEMENT_BYTES: Final = 2**20  # push-messages: a message's head and the tree of its objects
MAX_HEAD_BYTES: Final = 4096  # of that, the head: its content is in objects
MAX_CALL_BYTES: Final = 2**16  # every other call
MAX_OBJECTS: Final = 8192  # of one node and run: 5 MiB each, so 40 GiB
MAX_ACCOUNTS: Final = 4096  # nodes and runs whose replies are remembered
SETTLE_S: Final = 5.0  # a reply that was announced so long ago and does not lie here is done with
MAX_REPLIES: Final = 256  # of one node and run that the coordinator has not fetched
ACTIVATE: Final = "/v1/fleet/activate-node"
PUSH_MESSAGES: Final = "/v1/fleet/push-messages"
PUSH_OBJECT: Final = "/v1/fleet/push-object"
PULL_OBJECT: Final = "/v1/fleet/pull-object"
CONFIRM: Final = "/v1/fleet/confirm-message-received"
CALLS: Final[dict[str, type[Message]]] = {
    ACTIVATE: ActivateNodeRequest,
    "/v1/fleet/deactivate-node": DeactivateNodeRequest,
    "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatRequest,
    "/v1/fleet/pull-messages": PullMessagesRequest,
    PUSH_MESSAGES: PushMessagesRequest,
    "/v1/fleet/get-run": GetRunRequest,
    "/v1/fleet/get-fab": GetFabRequest,
    PUSH_OBJECT: PushObjectRequest,
    PULL_OBJECT: PullObjectRequest,
    CONFIRM: ConfirmMessageReceivedRequest,
}


class RefusedError(Exception):
    """A request that goes no further: `status` goes to the peer, the message to the log."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def body_limit(path: str) -> int:
    """The most bytes that the body of a call of `path` may have."""
    return {PUSH_OBJECT: MAX_REQUEST_BYTES, PUSH_MESSAGES: MAX_ANNOUNCEMENT_BYTES}.get(path, MAX_CALL_BYTES)


class FleetRules:
    """Judges calls by the SuperLink's state.

    Of one node and run, at most two messages of `max_message_bytes`, `MAX_REPLIES` replies and `MAX_OBJECTS` objects
    may lie in the database at a time; what the coordinator has fetched no longer counts.
    """

    def __init__(self, state: FleetState, max_message_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._state, self._clock = state, clock
        self._announced: dict[
            tuple[int, int], dict[str, float]
        ] = {}  # (run, node) → replies not fetched, and since when
        self._lock = threading.Lock()
        self._max_held_bytes = 2 * max_message_bytes + MAX_REQUEST_BYTES

    def check(self, path: str, public_key: bytes, body: bytes) -> None:
        """Raises RefusedError unless the node with this key may make the call."""
        request: Any = CALLS[path]()
        try:
            request.ParseFromString(body)
        except DecodeError as error:
            raise RefusedError(400, f"{path}: not a {type(request).__name__}") from error
        if path == ACTIVATE:
            if request.public_key != public_key:
                raise RefusedError(403, "activates a node of another key")
            return
        own = self._state.node_id(public_key)
        named = request.node_id if isinstance(request, DeactivateNodeRequest) else request.node.node_id
        if own is None or named != own:
            raise RefusedError(401, f"names node {named}, the key is of node {own}")
        if isinstance(request, PushMessagesRequest):
            self._check_reply(request, own)
        elif isinstance(request, PushObjectRequest):
            self._check_upload(request, own)
        elif isinstance(request, PullObjectRequest):
            if not self._state.readable(request.object_id, request.run_id, own):
                raise RefusedError(403, f"object {request.object_id[:64]!r} is of no message to node {own}")
        elif isinstance(request, ConfirmMessageReceivedRequest):
            self._check_addressee(request.message_object_id, request.run_id, own)

    def _check_reply(self, request: PushMessagesRequest, own: int) -> None:
        """One reply of node `own`, to a message that it was sent and has not answered, and no other's objects."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise RefusedError(403, f"{len(request.messages_list)} messages, expected one with its tree")
        message, tree = request.messages_list[0], request.message_object_trees[0]
        head = message.metadata
        if message.ByteSize() > MAX_HEAD_BYTES or len(request.clientapp_runtime_list) > 1:
            raise RefusedError(413, f"a message head of {message.ByteSize()} bytes, at most {MAX_HEAD_BYTES}")
        if not head.reply_to_message_id:
            raise RefusedError(403, "a message that is no reply: only the coordinator may send one")
        if (head.src_node_id, head.dst_node_id) != (own, SERVER_NODE_ID):
            raise RefusedError(403, f"a message from node {head.src_node_id} to {head.dst_node_id}, pushed by {own}")
        self._check_addressee(head.reply_to_message_id, head.run_id, own)
        if self._state.reply_to(head.reply_to_message_id) not in (None, head.message_id):
            raise RefusedError(403, f"node {own} has answered this message already")
        if self._state.author(head.message_id) not in (None, own):
            raise RefusedError(403, "the message's id is that of another node's reply")
        objects = {node.object_id for node in _nodes(tree)}
        if tree.object_id != head.message_id or self._state.any_instruction(objects):
            raise RefusedError(403, "the objects announced are not those of the reply")
        self._check_room(head.run_id, own, replies=1, objects=len(objects))
        with self._lock:
            self._announced.setdefault((head.run_id, own), {})[head.message_id] = self._clock()
            if len(self._announced) > MAX_ACCOUNTS:
                del self._announced[next(iter(self._announced))]  # of a run that is over, most likely

    def _check_addressee(self, message_id: str, run_id: int, own: int) -> None:
        if self._state.addressee(message_id) != (run_id, own):
            raise RefusedError(403, f"message {message_id[:64]!r} was not sent to node {own} in run {run_id}")

    def _check_upload(self, request: PushObjectRequest, own: int) -> None:
        """An object of a reply that node `own` has announced; the upload's name is a secret of its own."""
        run_id, reply = self._state.upload(request.session_id) or (None, "")
        if run_id != request.run_id or self._state.author(reply) not in (None, own):
            raise RefusedError(403, f"node {own} has announced no reply with this object")
        self._check_room(request.run_id, own, size_bytes=len(request.object_content))

    def _check_room(self, run_id: int, own: int, *, replies: int = 0, objects: int = 0, size_bytes: int = 0) -> None:
        with self._lock:
            announced = dict(self._announced.get((run_id, own), {}))
        held = self._state.held(run_id, own, announced)
        fetched = {reply_id for reply_id, when in announced.items() if when < self._clock() - SETTLE_S} - held.replies
        with self._lock:
            still_announced = self._announced.get((run_id, own), {})
            for reply_id in fetched:
                still_announced.pop(reply_id, None)
            if not still_announced:
                self._announced.pop((run_id, own), None)
        where = f"node {own}, run {run_id}"
        waiting = len(held.replies | announced.keys() - fetched)
        if waiting + replies > MAX_REPLIES or held.objects + objects > MAX_OBJECTS:
            raise RefusedError(413, f"{where}: {waiting} replies of {held.objects} objects lie here already")
        if held.size_bytes + size_bytes > self._max_held_bytes:
            raise RefusedError(413, f"{where}: {held.size_bytes} bytes lie here, at most {self._max_held_bytes}")


def _nodes(tree: ObjectTree) -> Iterator[ObjectTree]:
    """The tree's nodes. Its depth is bounded by protobuf's own limit on nesting (100)."""
    yield tree
    for child in tree.children:
        yield from _nodes(child)
