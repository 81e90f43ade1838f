"""The lane's framing and resumption: two state machines without I/O, the same at both ends.

A lane carries messages (opaque bytes) in both directions over streams that may break. Each direction numbers its
messages 1, 2, …; each frame is a fixed header and, for DATA, one slice of one message.

    kind   sequence, offset          size               ack
    HELLO  the next byte wanted      session's number   messages consumed so far
    DATA   the slice's first byte    message's size     messages consumed so far
    ACK    0, 0                      0                  messages consumed so far

On every new stream both ends say HELLO and send from the byte that the other wants, so nothing is lost or repeated. A
message is acknowledged when the application has consumed it, and at most `WINDOW` messages are on their way
unacknowledged: this is the flow control, and it bounds what a receiver holds to WINDOW · max_message_bytes whatever the
peer does.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.stored import Plot, Stretch

CHUNK_BYTES: Final = 1 << 20
WINDOW: Final = 2
HELLO, DATA, ACK = 1, 2, 3
_HEADER: Final = struct.Struct(">BQQQQ")
MAX_FRAME_BYTES: Final = _HEADER.size + CHUNK_BYTES
Buffer: TypeAlias = bytes | bytearray | memoryview | Stretch


class Frame(NamedTuple):
    """One frame; `payload` is empty but for DATA."""

    kind: int
    sequence: int
    offset: int
    size: int
    ack: int
    payload: memoryview = memoryview(b"")

    def to_bytes(self) -> bytes:
        head = _HEADER.pack(self.kind, self.sequence, self.offset, self.size, self.ack)
        return b"".join((head, self.payload))


def parse_frame(data: bytes) -> Frame:
    """The frame in `data`, its payload uncopied. Raises ProtocolError on anything that is no well-formed frame."""
    if not _HEADER.size <= len(data) <= MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(data)} bytes, expected {_HEADER.size} to {MAX_FRAME_BYTES}")
    kind, sequence, offset, size, ack = _HEADER.unpack_from(data)
    frame = Frame(kind, sequence, offset, size, ack, memoryview(data)[_HEADER.size :])
    if frame.kind not in (HELLO, DATA, ACK):
        raise ProtocolError(f"frame kind {frame.kind}")
    if bool(frame.payload) != (frame.kind == DATA):
        raise ProtocolError(f"{len(frame.payload)} bytes of payload in a frame of kind {frame.kind}")
    return frame


@dataclass(eq=False)
class Outgoing:
    """A message to send: the concatenation of `parts`, which several messages may share."""

    parts: tuple[Buffer, ...]

    def __post_init__(self) -> None:
        self.size = sum(map(length_of, self.parts))

    def slice(self, start: int, length: int) -> list[memoryview]:
        """The views that make up bytes [start, start + length); of a part that lies in a file, copies."""
        views = []
        for piece in self.parts:
            size = length_of(piece)
            if length and start < size:
                if isinstance(piece, Stretch):
                    views.append(memoryview(piece.read(start, length)))
                else:
                    views.append(memoryview(piece)[start : start + length])
                length -= len(views[-1])
            start = max(0, start - size)
        return views


def length_of(piece: Buffer) -> int:
    """How many bytes `piece` stands for."""
    return piece.length if isinstance(piece, Stretch) else len(piece)


class Sender:
    """The sending half of one end: hands out frames from wherever the peer stands, keeps what is not acknowledged."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._waiting: deque[Outgoing] = deque()
        self._flight: deque[Outgoing] = deque()  # numbered, unacknowledged; [0] has number `_acked + 1`
        self._acked = 0
        self._next = (1, 0)  # the next byte to send: (sequence, offset)
        self._furthest = (1, 0)
        self.held_bytes = 0

    def __len__(self) -> int:
        """Messages that are not acknowledged."""
        return len(self._waiting) + len(self._flight)

    @property
    def waiting(self) -> bool:
        """Whether a message is not begun yet, as when too many are on their way."""
        return bool(self._waiting)

    def push(self, message: Outgoing) -> None:
        """Queue `message`. Raises ServiceError if more would be outstanding than this lane may hold."""
        if not message.size:
            raise ProtocolError("an empty message")
        if len(self) >= self._max_messages or self.held_bytes + message.size > self._max_bytes:
            raise ServiceError(
                f"{len(self)} messages of {self.held_bytes} bytes are outstanding on the lane, "
                f"limits are {self._max_messages} and {self._max_bytes}"
            )
        self._waiting.append(message)
        self.held_bytes += message.size

    def withdraw(self, message: Outgoing) -> None:
        """Forget `message` if no byte of it has been sent; otherwise it goes its way."""
        if message in self._waiting:
            self._waiting.remove(message)
            self.held_bytes -= message.size

    def next_frame(self, ack: int) -> bytes | None:
        """The next DATA frame, carrying `ack`; None if there is nothing to send or the window is used up."""
        sequence, offset = self._next
        position = sequence - self._acked - 1
        if position == len(self._flight):
            if not self._waiting or position >= WINDOW:
                return None
            self._flight.append(self._waiting.popleft())
        message = self._flight[position]
        views = message.slice(offset, CHUNK_BYTES)
        frame = b"".join((_HEADER.pack(DATA, sequence, offset, message.size, ack), *views))
        offset += len(frame) - _HEADER.size
        self._next = (sequence, offset) if offset < message.size else (sequence + 1, 0)
        self._furthest = max(self._furthest, self._next)
        return frame

    def resume(self, sequence: int, offset: int, ack: int) -> None:
        """Send from the peer's position on. Raises ProtocolError if that was never sent or is already forgotten."""
        self._acknowledge(ack, sequence)
        position = sequence - self._acked - 1
        in_flight = 0 <= position < len(self._flight) and offset < self._flight[position].size
        if not (in_flight or (position == len(self._flight) and offset == 0)) or (sequence, offset) > self._furthest:
            raise ProtocolError(f"the peer wants to go on at {sequence}:{offset}, sent up to {self._furthest}")
        self._next = (sequence, offset)

    def acknowledge(self, ack: int) -> None:
        """Drop the messages up to number `ack`. Raises ProtocolError if one of them is not sent, or `ack` goes back."""
        self._acknowledge(ack, self._next[0])

    def _acknowledge(self, ack: int, end: int) -> None:
        last = min(end, self._furthest[0]) - 1
        if ack != self._acked and not self._acked < ack <= last:
            raise ProtocolError(f"acknowledged {ack}, expected {self._acked} to {last}")
        for _ in range(ack - self._acked):
            self.held_bytes -= self._flight.popleft().size
        self._acked = ack


NO_PLOT: Final = Plot(0)


class Receiver:
    """The receiving half of one end: rebuilds messages from contiguous chunks, in order, within its bounds."""

    def __init__(self, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._sequence, self._offset = 1, 0
        self._plot, self._size = NO_PLOT, 0
        self.consumed = 0

    @property
    def position(self) -> tuple[int, int]:
        """The number of the message that is due, and how many bytes of it are here."""
        return self._sequence, self._offset

    def hello(self, session: int) -> bytes:
        """The frame that tells the peer where to go on."""
        return Frame(HELLO, self._sequence, self._offset, session, self.consumed).to_bytes()

    def drop(self) -> None:
        """Forget what is here of a message that is not whole: on the next stream the peer begins it again."""
        self._plot, self._size, self._offset = NO_PLOT, 0, 0

    def check(self, frame: Frame) -> None:
        """Raise ProtocolError on any chunk that is not exactly the next one, exceeds the announced size, or belongs to
        a message too large or too many.
        """
        if (frame.sequence, frame.offset) != (self._sequence, self._offset):
            raise ProtocolError(f"chunk {frame.sequence}:{frame.offset}, expected {self._sequence}:{self._offset}")
        if frame.offset == 0:
            if not 0 < frame.size <= self._max_message_bytes:
                raise ProtocolError(f"a message of {frame.size} bytes, limit is {self._max_message_bytes}")
            if frame.sequence > self.consumed + WINDOW:
                raise ProtocolError(
                    f"message {frame.sequence} before message {frame.sequence - WINDOW} was acknowledged"
                )
        elif frame.size != self._size:
            raise ProtocolError(f"message {frame.sequence}: announced {self._size} bytes, then {frame.size}")
        end = frame.offset + len(frame.payload)
        if end > frame.size:
            raise ProtocolError(f"message {frame.sequence}: {end} bytes, announced {frame.size}")

    def accept(self, frame: Frame, plot: Plot | None = None) -> memoryview | None:
        """Take a DATA frame; the message if this completes it. A message that begins is put into `plot`.

        Raises ProtocolError, and allocates nothing, where `check` does.
        """
        self.check(frame)
        if frame.offset == 0:
            self._plot, self._size = plot or Plot(frame.size), frame.size
        self._plot.write(frame.offset, frame.payload)
        self._offset = frame.offset + len(frame.payload)
        if self._offset < frame.size:
            return None
        whole, self._plot = self._plot.whole(), NO_PLOT
        self._sequence, self._offset = self._sequence + 1, 0
        return whole

    def consume(self) -> None:
        """The application is done with the oldest message that it was given."""
        if self.consumed + 1 >= self._sequence:
            raise ProtocolError("consumed more messages than were received")
        self.consumed += 1


def ack_frame(ack: int) -> bytes:
    return Frame(ACK, 0, 0, 0, ack).to_bytes()
