"""A message that has begun and stands still is forgotten, its memory given back, and sent again from its beginning."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from tests.federation.test_stored import resident_bytes

from sovfed.federation.errors import ProtocolError
from sovfed.federation.stored import Plot
from sovfed.federation.wire import lane_end
from sovfed.federation.wire.lane import ACK, CHUNK_BYTES, DATA, Frame, Outgoing, Receiver, parse_frame
from sovfed.federation.wire.lane_end import LaneEnd
from sovfed.server.network.uploads import MEMORY_BYTES, Uploads

SESSION, MOST = 7, 1 << 30
MESSAGE = np.random.default_rng(1).bytes(3 * CHUNK_BYTES + 5)


class Pipe:
    """One end of a stream between two ends in one process; `pace_s` passes before each frame that leaves here."""

    def __init__(self, pace_s: float = 0.0) -> None:
        self.peer, self.frames, self.pace_s = self, asyncio.Queue[bytes](1), pace_s

    async def read(self) -> object:
        return await self.frames.get()

    async def write(self, frame: bytes, /) -> None:
        await asyncio.sleep(self.pace_s)
        await self.peer.frames.put(frame)


def pipes(pace_s: float = 0.0) -> tuple[Pipe, Pipe]:
    near, far = Pipe(), Pipe(pace_s)
    near.peer, far.peer = far, near
    return near, far


class Taker:
    """An end that takes messages, and the memory that it was asked for."""

    def __init__(self, uploads: Uploads | None = None) -> None:
        self.taken: list[bytes] = []
        self.owners: list[weakref.ref[object]] = []
        self._uploads = uploads
        self.end = LaneEnd(SESSION, MOST, self._deliver, asyncio.get_running_loop(), self._plot)

    def _deliver(self, end: LaneEnd, data: memoryview) -> None:
        self.taken.append(bytes(data))
        end.consume()

    async def _plot(self, size: int, head: memoryview) -> Plot:
        plot = Plot(size) if self._uploads is None else await self._uploads.plot(size, head)
        self.owners.append(weakref.ref(plot.owner))
        return plot


def give(message: bytes = MESSAGE) -> LaneEnd:
    """An end that has `message` to send."""
    end = LaneEnd(SESSION, MOST, lambda _end, _data: None, asyncio.get_running_loop())
    end.send(Outgoing((message,)))
    return end


@asynccontextmanager
async def running(*work: Awaitable[None]) -> AsyncIterator[Sequence[asyncio.Future[None]]]:
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)


async def announce(far: Pipe, size: int, payload: bytes = b"x", drip_s: float = 0.0) -> None:
    """Begin a message of `size` bytes, and send no more of it, or a byte every `drip_s`."""
    await far.write(Receiver(MOST).hello(SESSION))
    await far.write(Frame(DATA, 1, 0, size, 0, memoryview(payload)).to_bytes())
    for offset in range(len(payload), size if drip_s else 0):
        await asyncio.sleep(drip_s)
        await far.write(Frame(DATA, 1, offset, size, 0, memoryview(b"x")).to_bytes())


@pytest.mark.parametrize("drip_s", [0.0, 0.05])
def test_one_that_stands_still_or_drips_is_forgotten_and_comes_again_whole(
    monkeypatch: pytest.MonkeyPatch, drip_s: float
) -> None:
    monkeypatch.setattr(lane_end, "STALL_S", 0.3)

    async def story() -> None:
        taker, (near, far) = Taker(), pipes()
        async with running(announce(far, len(MESSAGE), MESSAGE[:1], drip_s)):
            with pytest.raises(ProtocolError, match="forgotten"):
                await asyncio.wait_for(taker.end.pump(near), 10)
        gc.collect()
        assert taker.owners[0]() is None, "its memory is given back"
        near, far = pipes()
        async with running(taker.end.pump(near), give().pump(far)):
            await until(lambda: taker.taken)
        assert taker.taken == [MESSAGE]

    asyncio.run(story())


def test_one_that_comes_slowly_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_end, "STALL_S", 1.0)

    async def story() -> None:
        taker, (near, far) = Taker(), pipes(pace_s=0.6)  # a chunk each, and longer than STALL_S in all
        async with running(taker.end.pump(near), give().pump(far)) as tasks:
            await until(lambda: taker.taken)
            assert taker.taken == [MESSAGE] and not any(task.done() for task in tasks)

    asyncio.run(story())


def test_what_is_here_of_one_whose_stream_is_gone_is_forgotten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_end, "STALL_S", 0.2)

    async def story() -> None:
        taker, (near, far) = Taker(), pipes()
        async with running(taker.end.pump(near), announce(far, len(MESSAGE))):
            await until(lambda: taker.owners)
        await until(lambda: taker.owners[0]() is None)

    asyncio.run(story())


def test_nothing_keeps_an_end_whose_session_is_over() -> None:
    async def session() -> tuple[weakref.ref[LaneEnd], weakref.ref[object]]:
        taker, (near, far) = Taker(), pipes()
        async with running(taker.end.pump(near), announce(far, len(MESSAGE))):
            await until(lambda: taker.owners)
        return weakref.ref(taker.end), taker.owners[0]

    async def story() -> None:
        end, owner = await session()
        await asyncio.sleep(0.05)
        gc.collect()
        assert (end(), owner()) == (None, None), "the look that is to come does not hold them"

    asyncio.run(story())


async def next_frame(far: Pipe) -> Frame:
    data = await asyncio.wait_for(far.read(), 10)
    assert isinstance(data, bytes)
    return parse_frame(data)


def test_an_answer_is_one_frame_that_acknowledges_what_it_answers() -> None:
    async def story() -> None:
        def answer(end: LaneEnd, data: memoryview) -> None:
            end.answer(Outgoing((b"re: ", bytes(data))))

        end, (near, far) = LaneEnd(SESSION, MOST, answer, asyncio.get_running_loop()), pipes()
        async with running(end.pump(near), announce(far, 1)):
            await next_frame(far)  # its hello
            frame = await next_frame(far)
        assert (frame.kind, frame.ack, bytes(frame.payload)) == (DATA, 1, b"re: x")

    asyncio.run(story())


@pytest.mark.parametrize("late_s", [0.0, 5 * lane_end.ACK_DELAY_S])
def test_what_another_thread_consumes_is_acknowledged_soon_or_late(late_s: float) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()

        def consume(end: LaneEnd) -> None:
            time.sleep(late_s)
            end.consume()

        def take(end: LaneEnd, _: memoryview) -> None:
            end.acknowledge_in_time()
            loop.run_in_executor(None, consume, end)

        end, (near, far) = LaneEnd(SESSION, MOST, take, loop), pipes()
        async with running(end.pump(near), announce(far, 1)):
            await next_frame(far)  # its hello
            for number in (1, 2):
                frame = await next_frame(far)
                assert (frame.kind, frame.ack) == (ACK, number)
                await far.write(Frame(DATA, number + 1, 0, 1, 0, memoryview(b"x")).to_bytes())

    asyncio.run(story())


def test_what_waits_for_an_acknowledgement_goes_when_it_comes() -> None:
    async def story() -> None:
        end, (near, far) = give(b"1"), pipes()
        for message in (b"2", b"3"):
            end.send(Outgoing((message,)))
        async with running(end.pump(near)):
            await far.write(Receiver(MOST).hello(SESSION))
            frames = [await next_frame(far) for _ in range(3)]  # its hello, and as many messages as may be on their way
            await far.write(Frame(ACK, 0, 0, 0, 1).to_bytes())
            frames.append(await next_frame(far))
        assert [bytes(frame.payload) for frame in frames] == [b"", b"1", b"2", b"3"]

    asyncio.run(story())


def test_many_that_are_announced_and_never_come_take_neither_memory_nor_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve of 60 MB, of which memory is for three, and twelve of a GiB; an honest one comes through meanwhile."""
    monkeypatch.setattr(lane_end, "STALL_S", 2.0)
    sizes = [60_000_000] * 12 + [MOST] * 12
    assert sum(sizes[:12]) > 3 * MEMORY_BYTES

    def on_disk() -> int:
        total = 0
        for link in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                total += link.stat().st_blocks * 512 * str(link.readlink()).startswith(str(tmp_path))
        return total

    async def story() -> None:
        uploads = Uploads(tmp_path, asyncio.get_running_loop())
        takers, before = [Taker(uploads) for _ in sizes], resident_bytes()
        ends = [(taker, *pipes()) for taker in takers]
        pumps = [asyncio.ensure_future(taker.end.pump(near)) for taker, near, _ in ends]
        async with running(*(announce(far, size) for (_, _, far), size in zip(ends, sizes, strict=True))):
            await until(lambda: all(taker.owners for taker in takers))
            assert resident_bytes() - before < 24 * CHUNK_BYTES, "of 13 GB that were announced"
            assert on_disk() < 24 * CHUNK_BYTES
            honest, (near, far) = Taker(uploads), pipes()
            async with running(honest.end.pump(near), give().pump(far)):
                await until(lambda: honest.taken)
            ended = await asyncio.gather(*pumps, return_exceptions=True)
        assert all(isinstance(error, ProtocolError) for error in ended)
        assert uploads._held == 0, "the place of each is given back"

    asyncio.run(story())
