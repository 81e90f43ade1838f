"""`StreamGrid`: Flower's Grid over the lane. ServerApp code cannot tell it from Flower's own but by its speed."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from flwr.app import Message as FlowerMessage
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run

from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.secagg.keys import Identity
from sovfed.federation.wire.flower import SERVER_NODE_ID
from sovfed.federation.wire.grids import LeftS, StreamingGrid, for_ever
from sovfed.federation.wire.lane_codec import Parts, content_parts, error_reply, pack, unpack
from sovfed.federation.wire.lane_end import LaneEnd
from sovfed.server.network.lane_links import Links
from sovfed.server.network.link import Link
from sovfed.server.network.presence import NOBODY, Awaited

log = logging.getLogger(__name__)
UNAVAILABLE: Final = "The node has not joined the lane."


@dataclass(frozen=True)
class _Reply:
    message: FlowerMessage
    end: LaneEnd | None  # where its place is freed once it is taken; None for replies made here


class StreamGrid(StreamingGrid):
    """Pushes messages to the institutions' streams and hands out each reply as it arrives.

    A reply counts only if it comes from the node that was asked, for this run, in answer to a message that is
    outstanding; any other is logged, counted in `refused` and dropped.
    """

    def __init__(self, base: Grid, run_id: int, max_message_bytes: int) -> None:
        self._base, self._run_id, self._max_message_bytes = base, run_id, max_message_bytes
        self._changed = threading.Condition()
        self._asked: dict[str, Link] = {}  # by message id
        self._ready: dict[str, _Reply] = {}  # by the id of the message replied to
        self._links: Links | None = None
        self.bytes_down = self.bytes_up = self.refused = 0

    def start(self, links: Links) -> None:
        """Carry messages over `links`."""
        self._links = links

    def set_run(self, run: Run) -> None:
        self._base.set_run(run)

    @property
    def run(self) -> Run:
        return self._base.run

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes whose stream is open, or was until a moment ago."""
        return self._open_links.present()

    def get_node_ids(self) -> Iterable[int]:
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        """Send each message to its node; the ids by which `pull_messages` finds the replies.

        Content shared by several messages is serialised once. Raises ProtocolError for a message larger than the lane
        takes and ServiceError if a node leaves too many unanswered.
        """
        contents: dict[int, Parts] = {}
        batch = list(messages)  # holds every content, so that its identity stays its own
        ids = []
        try:
            for message in batch:
                content = None
                if message.has_content():
                    content = contents.get(id(message.content))
                    if content is None:
                        content = contents[id(message.content)] = content_parts(message.content)
                ids.append(self._push(message, content))
        finally:
            self._open_links.flush()
        return ids

    def _push(self, message: FlowerMessage, content: Parts | None) -> str:
        metadata = message.metadata
        message_id = metadata.__dict__["_message_id"] = secrets.token_hex(16)  # as Flower's own Grid sets it
        link = self._open_links.get(metadata.dst_node_id)
        if link is None:
            reply = error_reply(ErrorCode.NODE_UNAVAILABLE, UNAVAILABLE, message)
            with self._changed:
                self._ready[message_id] = _Reply(reply, None)
            return message_id
        outgoing = pack(message, content)
        if outgoing.size > self._max_message_bytes:
            raise ProtocolError(
                f"a message of {outgoing.size} bytes, limit is {self._max_message_bytes} (server.max_message_bytes)"
            )
        with self._changed:
            self._asked[message_id] = link
        try:
            link.send(message_id, outgoing, time.monotonic() + metadata.ttl)
        except ServiceError:
            with self._changed:
                del self._asked[message_id]
            raise
        self.bytes_down += outgoing.size
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        """The replies to `message_ids` that have arrived and were not pulled yet."""
        pulled = (self._take(message_id) for message_id in message_ids)
        return [message for message in pulled if message is not None]

    def heard(self, node_id: int) -> float:
        link = self._open_links.get(node_id)
        return -math.inf if link is None else link.heard_at

    def replies(
        self, messages: Iterable[FlowerMessage], timeout_s: float, left_s: LeftS = for_ever
    ) -> Iterator[FlowerMessage]:
        deadline = time.monotonic() + timeout_s
        waiting = list(self.push_messages(messages))
        del messages
        try:
            while waiting:
                with self._changed:
                    remaining = min(deadline - time.monotonic(), left_s())
                    self._changed.wait_for(
                        lambda: any(awaited in self._ready for awaited in waiting), max(0.0, remaining)
                    )
                    arrived = [awaited for awaited in waiting if awaited in self._ready]
                if not arrived:
                    return
                for message_id in arrived:
                    waiting.remove(message_id)
                    if (reply := self._take(message_id)) is not None:
                        yield reply
                    del reply
        finally:
            self._forget(waiting)

    def _take(self, message_id: str) -> FlowerMessage | None:
        with self._changed:
            reply = self._ready.pop(message_id, None)
        if reply is None:
            return None
        if reply.end is not None:
            reply.end.consume()
        return reply.message

    def _forget(self, message_ids: Iterable[str]) -> None:
        """Nobody waits for these replies any more."""
        for message_id in message_ids:
            with self._changed:
                link = self._asked.pop(message_id, None)
            if link is not None:
                link.forget(message_id)
            self._take(message_id)

    def expire(self) -> None:
        """Forget requests that are past their time to live."""
        with self._changed:
            links = set(self._asked.values())
        for link in links:
            self._forget(link.expired(time.monotonic()))

    def deliver(self, link: Link, end: LaneEnd, data: memoryview) -> None:
        """Take a message that came on the authenticated stream of `link`; called on the lane's thread."""
        end.acknowledge_in_time()
        try:
            message = unpack(data)
            self._accept(link, end, message, len(data))
        except ProtocolError as error:
            self.refused += 1
            log.warning("node %d: a reply was refused: %s", link.node_id, error)
            end.consume()

    def _accept(self, link: Link, end: LaneEnd, message: FlowerMessage, size: int) -> None:
        metadata = message.metadata
        if (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) != (
            self._run_id,
            link.node_id,
            SERVER_NODE_ID,
        ):
            raise ProtocolError(f"run {metadata.run_id}, from node {metadata.src_node_id} to {metadata.dst_node_id}")
        if not link.settle(metadata.reply_to_message_id):
            if link.is_late(metadata.reply_to_message_id):  # nobody waits for it any more
                end.consume()
                return
            raise ProtocolError("it answers no message that this node still owes")
        with self._changed:
            self._asked.pop(metadata.reply_to_message_id, None)
            self._ready[metadata.reply_to_message_id] = _Reply(message, end)
            self.bytes_up += size
            self._changed.notify_all()

    def presence(self) -> dict[str, Any] | None:
        """As `presence.py` counts them."""
        return asdict(self._open_links.presence())

    def close(self) -> None:
        """Tell the relay that the run is over: the institutions' streams end."""
        self._open_links.close()

    @property
    def _open_links(self) -> Links:
        if self._links is None:
            raise ServiceError("the lane is not open")
        return self._links


def open_stream_grid(
    base: Grid,
    *,
    run_id: int,
    run: str,
    identity: Identity,
    home: Path,
    address: str,
    nodes: Sequence[NodeInfo],
    max_message_bytes: int,
    offer_timeout_s: float,
    awaited: Awaited = NOBODY,
    folder: Path | None = None,
) -> StreamGrid:
    """The Grid over the lane of run `run`, once every node has joined, and all that `awaited` wants, or time is up.

    `identity` is the agency's and signs the offers; `folder` is the run's.
    Nodes that have not joined by then, and nodes that appear later, are offered the lane again in the background.
    Raises ServiceError if the relay cannot be reached or no node joined.
    """
    grid = StreamGrid(base, run_id, max_message_bytes)
    links = Links(
        base, grid, run_id=run_id, run=run, identity=identity, socket=home / "lane.sock", address=address, nodes=nodes,
        max_message_bytes=max_message_bytes, offer_timeout_s=offer_timeout_s, awaited=awaited,
        folder=folder,
    )  # fmt: skip
    grid.start(links)
    try:
        links.open()
    except BaseException:
        grid.close()
        raise
    return grid
