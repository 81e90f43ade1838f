"""A TCP proxy with bad weather: refuses, delays, throttles, falls silent, resets, or answers as a broken server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from sovfed.simulations.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Coroutine

Mode: TypeAlias = Literal["fair", "refuse", "delay", "throttle", "silent", "resets", "error"]
CHUNK: Final = 16_384
DELAY_S: Final = 0.3
END_S: Final = 2.0  # for what is under way when it is closed
BYTES_A_SECOND: Final = 1_000_000
RESET: Final = 0.05  # of what is read
ERROR: Final = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Weather:
    """Listens on `port` and passes all on to `target`, as `mode` allows; a thread of its own."""

    def __init__(self, target: int) -> None:
        (self.port,) = free_ports(1)
        self.mode: Mode = "fair"
        self._target, self._open = target, set[asyncio.StreamWriter]()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._listen())

    def become(self, mode: Mode) -> None:
        """Change the weather; connections that are open do not outlive a change to or from `refuse` and `silent`."""
        self.mode = mode
        if mode in ("refuse", "error"):
            self.cut()

    def cut(self) -> None:
        """Break every connection that is open."""
        self._run(self._cut())

    def close(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, work: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _end(self) -> None:
        self.mode = "fair"
        self._server.close()
        await self._cut()
        if passing := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(passing, timeout=END_S)

    async def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refuse":
            writer.transport.abort()
            return
        if self.mode == "error":
            with contextlib.suppress(OSError):
                await reader.read(CHUNK)
                writer.write(ERROR)
                await writer.drain()
            writer.close()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, back}
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))
        self._open -= {writer, back}

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ConnectionError):
            while data := await source.read(CHUNK):
                while self.mode == "silent":  # noqa: ASYNC110 - set by another thread
                    await asyncio.sleep(0.1)
                if self.mode == "delay":
                    await asyncio.sleep(DELAY_S)
                elif self.mode == "throttle":
                    await asyncio.sleep(len(data) / BYTES_A_SECOND)
                elif self.mode == "resets" and random.random() < RESET:  # noqa: S311 - weather, no secret
                    sink.transport.abort()
                    return
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(OSError, RuntimeError):
            sink.close()
