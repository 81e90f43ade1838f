"""Long replies take the memory of one, and none waits for one that is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sovfed.federation.stored import Plot
from sovfed.server.network import uploads
from sovfed.server.network.uploads import Uploads

HEAD = memoryview(b"")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MEMORY_BYTES", 1_000)
    monkeypatch.setattr(uploads, "PATIENCE_S", 2.0)


def run(story: Callable[[Uploads], Awaitable[None]], folder: Path) -> None:
    async def whole() -> None:
        await story(Uploads(folder, asyncio.get_running_loop()))

    asyncio.run(whole())


def in_memory(plot: Plot) -> bool:
    return plot.owner.size > 0


def test_one_that_is_longer_than_all_memory_is_in_memory_while_it_is_alone(tmp_path: Path) -> None:
    async def story(room: Uploads) -> None:
        first = await room.plot(5_000, HEAD)
        assert in_memory(first)
        assert not in_memory(await room.plot(10, HEAD))

    run(story, tmp_path)


def test_who_waits_gets_the_memory_of_one_that_is_added(tmp_path: Path) -> None:
    async def story(room: Uploads) -> None:
        plots = [await room.plot(500, HEAD) for _ in range(2)]
        waiting = [asyncio.create_task(room.plot(500, HEAD)) for _ in range(2)]
        await asyncio.sleep(0.05)
        whole = plots.pop().whole()
        assert not any(task.done() for task in waiting)
        del whole
        assert in_memory(await waiting[0])
        assert not in_memory(await waiting[1])

    run(story, tmp_path)


def test_a_full_disk_makes_it_wait_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_folder: Path, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "spooled", full)

    async def story(room: Uploads) -> None:
        first = await room.plot(900, HEAD)
        waiting = asyncio.create_task(room.plot(900, HEAD))
        await asyncio.sleep(3.0)
        assert not waiting.done()
        del first
        assert in_memory(await waiting)

    run(story, tmp_path)


def test_one_as_long_as_a_large_model_goes_to_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LONG_BYTES", 400)

    async def story(room: Uploads) -> None:
        assert in_memory(await room.plot(400, HEAD))
        assert not in_memory(await room.plot(401, HEAD))  # although there is memory

    run(story, tmp_path)
