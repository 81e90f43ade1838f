"""One end of a lane over gRPC: what coordinator and gateway share. Both are clients of the relay between them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeAlias

import grpc

from sovfed.federation.errors import ProtocolError
from sovfed.federation.stored import Plot
from sovfed.federation.wire.lane import (
    CHUNK_BYTES,
    DATA,
    HELLO,
    Frame,
    Outgoing,
    Receiver,
    Sender,
    ack_frame,
    parse_frame,
)

ACK_DELAY_S: Final = 0.02  # an acknowledgement waits this long for a DATA frame to travel with
CLOCK_S: Final = 0.001  # by so much a timer may be early
STALL_S: Final = 120.0  # in which a chunk more of a message must come, or the message is forgotten
BACK_OFF_S: Final = (0.05, 5.0)  # first and longest pause between attempts to reconnect
MAX_OUTSTANDING: Final = 16  # messages one end holds for its peer
HAND_OVER_S: Final = 0.001  # after which a thread that computes lets the loop's have the interpreter; Python's is 5 ms

SERVICE: Final = "sovfed.Lane"
CONTROL, ATTACH, JOIN = "Control", "Attach", "Join"  # coordinator's run and streams; an institution's stream
RUN_KEY, NODE_KEY, TOKEN_KEY, SESSION_KEY = "sovfed-run", "sovfed-node", "sovfed-token", "sovfed-session"

# A dead peer is noticed after 8 + 6 s: in grpcio 1.85 it is the ping timeout (60 s unless set) that ends the
# connection. No retries behind our back, no connection shared with anyone else; whether through a proxy, callers say.
KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 8_000),
    ("grpc.keepalive_timeout_ms", 6_000),
    ("grpc.http2.ping_timeout_ms", 6_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
)
# How much may be on its way on one stream before its reader has taken it. gRPC would let that grow with the speed of
# the network, to tens of MB a stream at the relay. 4 MiB are 14 MB/s over 300 ms; within a machine 2 are enough.
FAR, NEAR = (
    (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", size)) for size in (4 * CHUNK_BYTES, 2 * CHUNK_BYTES)
)
STREAM_OPTIONS: Final = (
    *KEEPALIVE,
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
CHANNEL_OPTIONS: Final = (*STREAM_OPTIONS, *NEAR, ("grpc.enable_http_proxy", 0))  # from process to process


MakePlot: TypeAlias = Callable[[int, memoryview], Awaitable[Plot]]  # of a message's size and its first chunk


class Stream(Protocol):
    """What an end needs of a gRPC stream."""

    async def read(self) -> object: ...

    async def write(self, frame: bytes, /) -> None: ...


def open_stream(
    channel: grpc.aio.Channel, method: str, *metadata: tuple[str, str]
) -> grpc.aio.StreamStreamCall[bytes, bytes]:
    """A bidirectional call of the lane's service that carries raw bytes."""
    call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/{method}")
    return call(metadata=metadata)


def session_number(token: str) -> int:
    """The number by which both ends recognise the session that `token` began; the token cannot be got back from it."""
    return int.from_bytes(hashlib.sha256(b"sovfed lane session\0" + token.encode()).digest()[:8], "big")


class LaneEnd:
    """Sends and receives messages over a succession of streams; lives as long as the session.

    What has come of a message that stands still is forgotten, and the peer sends it again from its beginning: who
    announces much and sends little holds what it has sent, for two times `STALL_S` at most.
    `send`, `withdraw` and `consume` may be called from any thread; `deliver` is called on the loop's thread, and
    `consume` must follow once for each message it was given.
    """

    def __init__(
        self,
        session: int,
        max_message_bytes: int,
        deliver: Callable[[LaneEnd, memoryview], None],
        loop: asyncio.AbstractEventLoop,
        make_plot: MakePlot | None = None,
    ) -> None:
        """`make_plot` finds room for a message of more than one chunk; without it, such a one is kept in memory."""
        self.connected = False
        self.streams = 0  # on which the peer was met
        self._session, self._deliver, self._loop, self._make_plot = session, deliver, loop, make_plot
        self._sender = Sender(MAX_OUTSTANDING, MAX_OUTSTANDING * max_message_bytes)
        self._receiver = Receiver(max_message_bytes)
        self._lock = threading.Lock()
        self._thread = 0  # the loop's, once it carries messages
        self._wake = asyncio.Event()
        self._ack_sent = 0
        self._ack_due, self._timed = math.inf, False  # when an acknowledgement goes alone; whether that is looked at
        self._looked: tuple[int, int] | None = None  # the receiver's position when it was looked at last
        self._stood_still = asyncio.Event()

    def send(self, message: Outgoing, *, now: bool = True) -> None:
        """Queue `message`; it goes at once, or with the next `wake`. Raises ServiceError if too much is outstanding."""
        with self._lock:
            self._sender.push(message)
        if now:
            self._wake_up()

    def answer(self, message: Outgoing | None) -> None:
        """`consume`, and `send` the reply if there is one, with which the acknowledgement travels."""
        with self._lock:
            if message is not None:
                self._sender.push(message)
            self._receiver.consume()
        self._wake_up()

    def wake(self) -> None:
        """Send what is queued; on the loop's thread."""
        self._wake.set()

    def withdraw(self, message: Outgoing) -> None:
        """Do not send `message` if none of it has been sent."""
        with self._lock:
            self._sender.withdraw(message)

    def consume(self) -> None:
        """The application is done with the oldest message that it was given: the peer may send another."""
        with self._lock:
            self._receiver.consume()
        if not self._timed:  # else the acknowledgement goes in time, and to wake another thread costs more than it
            self._wake_up()

    def _wake_up(self) -> None:
        if threading.get_ident() == self._thread:
            self._wake.set()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the lane, and nothing is to be sent
            self._loop.call_soon_threadsafe(self._wake.set)

    @property
    def outstanding(self) -> int:
        """Messages of ours that are not acknowledged."""
        return len(self._sender)

    async def pump(self, stream: Stream) -> None:
        """Carry messages over `stream` until it ends. Raises ProtocolError if the peer breaks the protocol."""
        self._stood_still.clear()
        await stream.write(self._receiver.hello(self._session))
        self._ack_sent = self._receiver.consumed
        if not await self._meet(stream):
            return
        self.connected = True
        self.streams += 1
        tasks = [asyncio.ensure_future(each) for each in (self._read(stream), self._write(stream), self._given_up())]
        try:
            finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
        finally:
            self.connected = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _meet(self, stream: Stream) -> bool:
        data = await stream.read()
        if not isinstance(data, bytes):
            return False
        hello = parse_frame(data)
        if hello.kind != HELLO or hello.size != self._session:
            raise ProtocolError("the peer is of another session")
        with self._lock:
            self._sender.resume(hello.sequence, hello.offset, hello.ack)
        return True

    async def _read(self, stream: Stream) -> None:
        while isinstance(data := await stream.read(), bytes):
            frame = parse_frame(data)
            if frame.kind == HELLO:
                raise ProtocolError("a second hello")
            plot = await self._room_for(frame) if frame.kind == DATA else None
            with self._lock:
                if frame.ack:
                    self._sender.acknowledge(frame.ack)
                message = self._receiver.accept(frame, plot) if frame.kind == DATA else None
            if frame.ack and self._sender.waiting:
                self._wake.set()
            if message is not None:
                self._deliver(self, message)
            self._look_later()
            del plot, message  # so that they are gone when their reader is done with them

    def _look_later(self) -> None:
        """Look in a while at the message that has begun, unless that is to be done already."""
        if self._looked is None and self._receiver.position[1]:
            self._looked = self._receiver.position
            self._loop.call_later(STALL_S, _call, weakref.WeakMethod(self._look))

    def _look(self) -> None:
        """Forget the message that has begun if no chunk of it has come since the last look."""
        before, self._looked = self._looked or (0, 0), None
        sequence, offset = self._receiver.position
        if sequence == before[0] and offset - before[1] < CHUNK_BYTES:
            with self._lock:
                self._receiver.drop()
            self._stood_still.set()
        self._look_later()

    async def _given_up(self) -> None:
        await self._stood_still.wait()
        raise ProtocolError(f"no chunk of a message that has begun within {STALL_S:g} s; it is forgotten")

    async def _room_for(self, frame: Frame) -> Plot | None:
        """Room for the long message that `frame` begins, if it does; nothing is made for one that is not due."""
        if frame.offset or frame.size <= CHUNK_BYTES or self._make_plot is None:
            return None
        self._receiver.check(frame)
        return await self._make_plot(frame.size, frame.payload)

    async def _write(self, stream: Stream) -> None:
        self._thread = threading.get_ident()
        while True:
            self._wake.clear()
            with self._lock:
                ack = self._receiver.consumed
                frame = self._sender.next_frame(ack)
            if frame is None and self._loop.time() >= self._ack_due - CLOCK_S:
                self._ack_due = math.inf
                frame = ack_frame(ack) if ack != self._ack_sent else None
            if frame is None:
                if ack != self._ack_sent:
                    self.acknowledge_in_time()
                await self._wake.wait()
                continue
            self._ack_sent, self._ack_due = ack, math.inf
            await stream.write(frame)

    def acknowledge_in_time(self) -> None:
        """An acknowledgement is due after a while, unless one is already; on the loop's thread.

        For `deliver` to call where another thread will `consume` what it is given soon, and need not wake the loop's.
        """
        self._ack_due = min(self._ack_due, self._loop.time() + ACK_DELAY_S)
        if not self._timed:
            self._timed = True
            self._loop.call_at(self._ack_due, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timed = False
        if self._loop.time() + CLOCK_S < self._ack_due < math.inf:
            self.acknowledge_in_time()  # of a later message: the one before went with a message of ours
        else:
            self._wake.set()


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    if (bound := method()) is not None:
        bound()


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self, name: str) -> None:
        sys.setswitchinterval(HAND_OVER_S)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Cancel what runs on the loop and end the thread."""
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
