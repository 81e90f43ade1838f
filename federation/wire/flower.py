"""The Flower edge of the codec: our messages as Flower `Message`s and back. One ConfigRecord, one ArrayRecord.

Flower carries each record, array and chunk of a message as an object, with requests of its own. A message without
vectors but short ones of bytes is therefore one ConfigRecord alone.
"""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.grid import Grid
from flwr.supercore.date import now
from flwr.supercore.run import Run

from sovfed.federation.codec import check, decode, encode, vectors
from sovfed.federation.errors import ProtocolError
from sovfed.federation.messages import MAX_PARAMETERS, Message

RAW: Final = "sovfed.raw.le"  # serialisation type: the array's little-endian bytes, nothing else
SERVER_NODE_ID: Final = 1  # flwr.common.constant.SUPERLINK_NODE_ID, held by a contract test
log = logging.getLogger(__name__)
TTL_S: Final = 12 * 3600.0
SHORT_BYTES: Final = 4096  # a vector of bytes up to this stands in the header
MAX_LATE: Final = 4096  # replies that nobody waits for any more, but which are fetched when they come
LeftS: TypeAlias = Callable[[], float]
_DTYPES: Final = ("float32", "float64", "uint8", "uint64")


def to_records(message: Message) -> RecordDict:
    """The RecordDict that carries `message`; vectors are serialised as raw little-endian bytes, uncopied.

    Whoever holds the vectors must not write into them any more. The records are made when somebody looks at them:
    within one process nobody does, and `from_records` takes the message itself, once it is checked.
    """
    records = RecordDict()
    records.__dict__["_data"] = _Carried(_read_only(message))
    return records


class _Carried(UserDict[str, Any]):
    """The records of a message, made at the first look, from when on they are what counts."""

    def __init__(self, message: Message) -> None:
        self._message, self._checked = message, False  # UserDict's own would set `data`

    @property
    def message(self) -> Message | None:
        """The message if nobody has looked at, or changed, its records."""
        return None if "data" in self.__dict__ else self._message

    def check(self) -> Message:
        """The message, as `decode` takes it. Raises ProtocolError."""
        if not self._checked:
            check(self._message)
            self._checked = True
        return self._message

    @cached_property
    def data(self) -> dict[str, Any]:  # type: ignore[override]
        kind, scalars, parts = encode(self._message)
        short = {name: vector.tobytes() for name, vector in parts.items() if _is_short(vector)}
        arrays = ArrayRecord()
        for name, vector in parts.items():
            if name not in short:
                arrays[name] = _array(vector)
        header = ConfigRecord({"kind": kind, **scalars, **short})
        return {"header": header, "vectors": arrays} if arrays else {"header": header}


def arrays_of(records: RecordDict) -> list[Array]:
    """All arrays in `records`.

    Not by `RecordDict.array_records`: what that makes refers to itself and to the records, and so keeps a model in
    memory until Python looks for such circles.
    """
    return [array for record in records.values() if isinstance(record, ArrayRecord) for array in record.values()]


def _carried(records: RecordDict) -> Message | None:
    """The message that `to_records` was given in this process, if its records were not made yet."""
    data = records.__dict__["_data"]
    return data.message if isinstance(data, _Carried) else None


def _read_only(message: Message) -> Message:
    """`message` with vectors that cannot be written into, as those that came over a wire."""
    views = {name: vector.view() for name, vector in vectors(message).items() if vector.flags.writeable}
    if not views:
        return message
    for view in views.values():
        view.flags.writeable = False
    protected: Message = object.__new__(type(message))  # as copy, without the way that pickles take
    vars(protected).update(vars(message) | views)
    return protected


def _is_short(vector: npt.NDArray[Any]) -> bool:
    return vector.dtype == np.uint8 and vector.size <= SHORT_BYTES


def _array(vector: npt.NDArray[Any]) -> Array:
    array = Array(dtype=str(vector.dtype), shape=vector.shape, stype=RAW, data=b"")
    little = np.ascontiguousarray(vector, vector.dtype.newbyteorder("<"))
    array.data = little.data.cast("B").toreadonly() if little.size else b""  # type: ignore[assignment]
    return array


def from_records(records: RecordDict, *, judged: bool = True) -> Message:
    """The message that `records` carries. Raises ProtocolError on anything that does not fit exactly.

    What is not `judged` is only passed on, as `decode` has it.
    """
    data = records.__dict__["_data"]
    if isinstance(data, _Carried) and data.message is not None:
        return data.check()
    if "header" not in records or not set(records) <= {"header", "vectors"}:
        raise ProtocolError(f"records {sorted(records)[:8]}, expected ['header', 'vectors']")
    header, arrays = records["header"], records.get("vectors", ArrayRecord())
    if not isinstance(header, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise ProtocolError("records of the wrong type")
    scalars = dict(header)
    kind = scalars.pop("kind", None)
    if not isinstance(kind, str):
        raise ProtocolError("the header names no kind")
    short = {name: np.frombuffer(value, np.uint8) for name, value in scalars.items() if isinstance(value, bytes)}
    if twice := sorted(short.keys() & arrays.keys()):
        raise ProtocolError(f"vectors that are there twice: {twice[:8]}")
    parts = {**short, **{name: _vector(name, array) for name, array in arrays.items()}}
    return decode(kind, {name: value for name, value in scalars.items() if name not in short}, parts, judged=judged)


def _vector(name: str, array: Array) -> npt.NDArray[Any]:
    if array.stype != RAW or array.dtype not in _DTYPES:
        raise ProtocolError(f"vector {name[:40]!r}: serialised as {array.stype[:40]!r} of {array.dtype[:40]!r}")
    dtype = np.dtype(array.dtype).newbyteorder("<")
    if len(array.shape) != 1 or not 0 <= array.shape[0] <= MAX_PARAMETERS:
        raise ProtocolError(f"vector {name[:40]!r}: shape {list(array.shape)[:8]}")
    if len(array.data) != array.shape[0] * dtype.itemsize:
        raise ProtocolError(f"vector {name[:40]!r}: {len(array.data)} bytes for shape {list(array.shape)} of {dtype}")
    return np.frombuffer(array.data, dtype=dtype)


def new_message(
    content: RecordDict, *, run_id: int, node_id: int, kind: str, group: str, ttl_s: float = TTL_S
) -> FlowerMessage:
    """A Flower message to node `node_id`; `kind` is Flower's type, such as "train", "evaluate" or "query.lane"."""
    metadata = Metadata(
        run_id=run_id, message_id="", src_node_id=SERVER_NODE_ID, dst_node_id=node_id, reply_to_message_id="",
        group_id=group, created_at=now().timestamp(), ttl=ttl_s, message_type=kind,
    )  # fmt: skip
    return make_message(metadata=metadata, content=content)


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


def size_bytes(message: FlowerMessage) -> int:
    """Bytes of the vectors that `message` carries (an error carries none)."""
    if not message.has_content():
        return 0
    if (carried := _carried(message.content)) is not None:
        return sum(vector.nbytes for vector in vectors(carried).values())
    headers = (record for record in message.content.values() if isinstance(record, ConfigRecord))
    short = (value for header in headers for value in header.values() if isinstance(value, bytes))
    return sum(len(array.data) for array in arrays_of(message.content)) + sum(map(len, short))
