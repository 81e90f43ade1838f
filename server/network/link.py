"""One node's lane as the coordinator knows it: what it has not answered, and when the lane is to be offered again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ServiceError
from sovfed.federation.wire.lane import Outgoing
from sovfed.federation.wire.lane_end import LaneEnd

if TYPE_CHECKING:
    from flwr.proto.node_pb2 import NodeInfo

MAX_FORGOTTEN: Final = 1024  # messages to a node whose late reply is told from one that nobody asked for
OFFER_AGAIN_S: Final = 10.0  # how long an offer may take before it is made again; each time twice as long, up to
OFFER_LONGEST_S: Final = 60.0
AT_ONCE: Final = 32  # offers on their way: of hundreds that share a superlink, none would be there in time
MANY: Final = 64  # offers on their way that take twice as long


class Link:
    """One node's lane: its current session, if any, and the messages it has not answered."""

    def __init__(self, info: NodeInfo) -> None:
        self.info, self.node_id = info, int(info.node_id)
        self.end: LaneEnd | None = None
        self.lost_at = self.offered_at = float("-inf")  # monotonic
        self.missing_since = time.time()
        self.declined = False
        self.token = ""
        self.offers = 0  # since a stream was last up
        self.task: asyncio.Task[None] | None = None
        self.heard_at = float("-inf")  # monotonic, of the last reply, in time or late
        self._forgotten: OrderedDict[str, None] = OrderedDict()  # ids of messages whose reply nobody waits for
        self._unanswered: dict[str, tuple[Outgoing, float]] = {}  # by message id, in the order they were sent
        self._lock = threading.Lock()

    @property
    def connected(self) -> bool:
        return self.end is not None and self.end.connected

    @property
    def untaken(self) -> bool:
        """Whether its offer has not led to a stream yet, and may still do so."""
        return bool(self.token) and self.end is not None and self.end.streams == 0

    def due_after_s(self, nodes: int) -> float:
        """How long its last offer may take, as one of `nodes`."""
        tries = max(self.offers - 1, 0)
        return min(OFFER_AGAIN_S * 2.0**tries, OFFER_LONGEST_S) * (1 + min(nodes, AT_ONCE) / MANY)

    def waits_since(self, joined_at: float) -> float:
        """From when on its last offer takes its time, if another node joined at `joined_at`: the queue moves then."""
        if not self.offers:
            return self.offered_at
        return max(self.offered_at, min(joined_at, self.offered_at + OFFER_LONGEST_S))

    def lost_for(self, now: float) -> float:
        """Seconds since the stream broke; 0 while it is up."""
        return 0.0 if self.connected else now - self.lost_at

    def send(self, message_id: str, message: Outgoing, expires: float) -> None:
        """Have `message` sent with `Links.flush`, or once the node is back. Raises ServiceError if too many are
        unanswered.
        """
        with self._lock:
            if self.end is None:
                raise ServiceError(f"node {self.node_id} has never joined the lane")
            self.end.send(message, now=False)
            self._unanswered[message_id] = (message, expires)

    def settle(self, message_id: str) -> bool:
        """The message is answered; whether it was outstanding."""
        with self._lock:
            if settled := self._withdraw(message_id):
                self.heard_at = time.monotonic()
            return settled

    def forget(self, message_id: str) -> None:
        """Nobody waits for the answer any more; it may come late."""
        with self._lock:
            if self._withdraw(message_id):
                self._forgotten[message_id] = None
            while len(self._forgotten) > MAX_FORGOTTEN:
                self._forgotten.popitem(last=False)

    def is_late(self, message_id: str) -> bool:
        """Whether a reply to `message_id` is one that the node owed, and nobody waits for; true once."""
        with self._lock:
            if message_id not in self._forgotten:
                return False
            del self._forgotten[message_id]
            self.heard_at = time.monotonic()
            return True

    def _withdraw(self, message_id: str) -> bool:
        message, _ = self._unanswered.pop(message_id, (None, 0.0))
        if message is not None and self.end is not None:
            self.end.withdraw(message)
        return message is not None

    def expired(self, now: float) -> list[str]:
        with self._lock:
            return [message_id for message_id, (_, expires) in self._unanswered.items() if expires < now]

    def renew(self, end: LaneEnd) -> None:
        """Go on in a new session, which knows nothing of the old: everything unanswered is sent again."""
        with self._lock:
            self.end = end
            for message, _ in self._unanswered.values():
                end.send(message)


def next_offers(links: Sequence[Link], now: float, joined_at: float) -> list[Link]:
    """Whom of the nodes `links`, all online and gone, to offer the lane now, if another joined at `joined_at`.

    At most `AT_ONCE` offers are on their way. Who has had the fewest comes first, so that nodes which take none up
    keep nobody waiting. Times are monotonic.
    """
    under_way, due = 0, list[Link]()
    for link in links:
        if now - link.waits_since(joined_at) > link.due_after_s(len(links)):
            due.append(link)
        else:
            under_way += link.offers > 0 and not link.declined
    return sorted(due, key=lambda link: link.offers)[: max(0, AT_ONCE - under_way)]
