"""Where the long replies of institutions are while they come and until they are added: few in memory, the rest on disk.

However many institutions answer at the same time, they take no more memory than some do. A reply that comes while the
others have it all waits for a moment, as they are added one after another; where that takes longer, since one of them
is slow, it goes to a file in the run's folder, which has no name, grows as the reply comes and is gone with it. One as
long as a large model goes there at once: beside the model and the sum there is no third of their length in the
coordinator. What is announced and does not come takes nothing, and its place is given back (`LaneEnd`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Final

from sovfed.federation.host.quiet import LONG_BYTES
from sovfed.federation.stored import Plot, spooled
from sovfed.federation.wire.lane_codec import shift_of

log = logging.getLogger(__name__)
MEMORY_BYTES: Final = 192_000_000  # of all replies together that are in memory
PATIENCE_S: Final = 0.5  # before a reply goes to the disk, which costs more processor time than the network


class Uploads:
    """Room for the long messages of one run's streams, on the event loop `loop`."""

    def __init__(self, folder: Path | None, loop: asyncio.AbstractEventLoop) -> None:
        """`folder` is where files are made; None is where the system makes its temporary ones."""
        self._folder, self._loop = folder, loop
        self._held = self._count = 0  # in memory
        self._lock = threading.Lock()
        self._waiting: deque[asyncio.Event] = deque()

    async def plot(self, size: int, head: memoryview) -> Plot:
        """Room for a message of `size` bytes that begins with `head`."""
        shift = shift_of(head)
        if size > LONG_BYTES or not await self._wait_for(size, PATIENCE_S):
            try:
                return Plot(size, await asyncio.to_thread(spooled, self._folder, size + shift), shift)
            except OSError as error:
                log.warning("an upload of %d bytes waits for memory: %s", size, error)
                await self._wait_for(size, None)
        plot = Plot(size, None, shift)
        weakref.finalize(plot.owner, self._give_back, size).atexit = False
        return plot

    async def _wait_for(self, size: int, patience_s: float | None) -> bool:
        """Whether `size` bytes of memory are to be had within `patience_s`; they are taken then."""
        if not self._waiting and self._take(size):
            return True
        turn = asyncio.Event()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(patience_s):
                while self._waiting[0] is not turn or not self._take(size):
                    turn.clear()
                    await turn.wait()
        except TimeoutError:
            return False
        finally:
            self._waiting.remove(turn)
            self._wake()
        return True

    def _take(self, size: int) -> bool:
        with self._lock:
            if self._count and self._held + size > MEMORY_BYTES:
                return False
            self._held, self._count = self._held + size, self._count + 1
            return True

    def _give_back(self, size: int) -> None:
        """Called by whichever thread was the last to use the memory."""
        with self._lock:
            self._held, self._count = self._held - size, self._count - 1
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        if self._waiting:
            self._waiting[0].set()
