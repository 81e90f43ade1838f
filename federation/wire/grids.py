"""What the coordinator's round loop drives: Flower's `Grid` with one more verb, and the fall-back over Flower's own."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from flwr.app import Message as FlowerMessage
from flwr.app import RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run

from sovfed.federation.wire.flower import SERVER_NODE_ID, TTL_S, new_message, size_bytes

log = logging.getLogger(__name__)
MAX_LATE: Final = 4096  # replies that nobody waits for any more, but which are fetched when they come
LeftS: TypeAlias = Callable[[], float]


def for_ever() -> float:
    """No limit of its own."""
    return math.inf


class StreamingGrid(Grid):
    """Flower's Grid with one more verb, `replies`, and byte counters: what the coordinator's round loop drives.

    Three implementations: in memory (simulation), the lane (deployment) and `FlowerGrid` (fall-back).
    """

    bytes_down: int = 0
    bytes_up: int = 0

    @abstractmethod
    def replies(
        self, messages: Iterable[FlowerMessage], timeout_s: float, left_s: LeftS = for_ever
    ) -> Iterator[FlowerMessage]:
        """Push `messages`, then yield each reply as it arrives, until all are in or `timeout_s` has passed.

        `left_s`, asked whenever something has changed, is how many seconds the next reply may still take. A Grid on
        which nobody is ever late need not ask it.
        """

    def heard(self, node_id: int) -> float:
        """When (monotonic, seconds) a reply of the node came last, in time or late; -inf if that is not known."""
        return -math.inf

    def close(self) -> None:
        """Give back what this Grid itself holds: nothing, unless it says otherwise."""

    def awaits(self, stage: str, since: float, nodes: Iterable[int], asked: int, until: float) -> None:
        """Told what nodes are waited for outside of an exchange ("": nothing any more); whoever shows it overrides."""

    def presence(self) -> dict[str, Any] | None:
        """Who has joined, and who is missing since when; None where this Grid does not know."""
        return None

    def send_and_receive(
        self, messages: Iterable[FlowerMessage], *, timeout: float | None = None
    ) -> Iterable[FlowerMessage]:
        return list(self.replies(messages, TTL_S if timeout is None else timeout))

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> FlowerMessage:
        return new_message(content, run_id=self.run.run_id, node_id=dst_node_id, kind=message_type, group=group_id)


class FlowerGrid(StreamingGrid):
    """The fall-back: Flower's own Grid, polled briskly; messages lie in the SuperLink's database on their way."""

    POLL_S: Final = (0.05, 1.0)  # first and longest pause between polls

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._late: dict[str, int] = {}  # by message id, the node that may still answer
        self._heard: dict[int, float] = {}

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        batch = list(messages)
        self.bytes_down += sum(map(size_bytes, batch))
        return self._grid.push_messages(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        pulled = list(self._grid.pull_messages(message_ids))
        self.bytes_up += sum(map(size_bytes, pulled))
        return pulled

    def heard(self, node_id: int) -> float:
        return self._heard.get(node_id, -math.inf)

    def replies(
        self, messages: Iterable[FlowerMessage], timeout_s: float, left_s: LeftS = for_ever
    ) -> Iterator[FlowerMessage]:
        batch = list(messages)
        waiting = dict(zip(self.push_messages(batch), (message.metadata.dst_node_id for message in batch), strict=True))
        del messages, batch
        deadline, pause = time.monotonic() + timeout_s, self.POLL_S[0]
        try:
            while waiting and time.monotonic() < deadline and left_s() > 0:
                pulled = self.pull_messages([*waiting, *self._late])
                for reply in pulled:
                    if self._accept(reply, waiting):
                        yield reply
                pause = self.POLL_S[0] if pulled else min(2 * pause, self.POLL_S[1])
                if waiting:
                    time.sleep(pause)
        finally:
            self._late |= waiting
            for message_id in list(self._late)[: max(0, len(self._late) - MAX_LATE)]:
                del self._late[message_id]

    def _accept(self, reply: FlowerMessage, waiting: dict[str, int]) -> bool:
        """Whether a reply that was pulled is one that is waited for, and of the node that was asked."""
        message_id, author = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
        late = self._late.pop(message_id, None)
        addressee = late if late is not None else waiting.pop(message_id, None)
        if author == addressee:
            self._heard[author] = time.monotonic()
        elif addressee is None or not (author == SERVER_NODE_ID and reply.has_error()):
            log.warning("a reply of node %d was refused: node %s was asked", author, addressee)
            return False
        return late is None
