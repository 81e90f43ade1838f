"""Requests that are answered when there is something to say: who asks whether anything has come need not ask again.

Flower's nodes and executors ask over and over. Behind `Held`, an asker who was told "nothing" is kept waiting at its
next request until the bell rings for it, or `hold_s` has passed; then the request goes on to Flower as if it had just
come. Nothing is answered in Flower's place, so a bell that does not ring costs time and no message.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, TypeAlias

Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
App: TypeAlias = Callable[[Event, Receive, Send], Awaitable[None]]

HOLD_S: Final = 20.0  # below the 30 s after which Flower's HTTP client gives up
MAX_KNOWN: Final = 65_536  # askers whose last answer is remembered
INSTITUTION: Final = "sovfed.institution"  # in a request's scope: whose certificate it came by


class Bell:
    """Rings for askers, from any thread. A ring is never missed: each asker is told how many there were."""

    def __init__(self) -> None:
        self._rings: Counter[int] = Counter()
        self._waiting: dict[int, asyncio.Future[bool]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock, self._closed = threading.Lock(), False

    def ring(self, askers: Iterable[int]) -> None:
        """Something has come for each of `askers`."""
        askers = set(askers)
        with self._lock:
            self._rings.update(askers)
            loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake, askers)

    def close(self) -> None:
        """Nobody is kept waiting any more. On the event loop's thread."""
        self._closed = True
        self._wake(set(self._waiting))

    def rings(self, asker: int) -> int:
        """How often it has rung for `asker`."""
        with self._lock:
            return self._rings[asker]

    async def wait(self, asker: int, heard: int, limit_s: float) -> bool:
        """Wait until it has rung more than `heard` times, or `limit_s`; False where the asker has asked once more."""
        self._loop = asyncio.get_running_loop()
        older, waiting = self._waiting.get(asker), self._loop.create_future()
        self._waiting[asker] = waiting
        if older is not None and not older.done():
            older.set_result(False)
        try:
            if self._closed or self.rings(asker) > heard:
                return True
            async with asyncio.timeout(limit_s):
                return bool(await waiting)
        except TimeoutError:
            return True
        finally:
            if self._waiting.get(asker) is waiting:
                del self._waiting[asker]

    def _wake(self, askers: Iterable[int]) -> None:
        for asker in askers:
            waiting = self._waiting.get(asker)
            if waiting is not None and not waiting.done():
                waiting.set_result(True)


class Held:
    """`app`, where a request of `path` that would be answered "nothing" waits for the bell.

    `asker` names who asks, from the request's body, which must be small. "Nothing" is an empty body, as protobuf
    writes a message without a field. Who has asked anew, or is gone, is turned away: what it would have been told is
    still there. `doubled` is given the scope of each that has asked anew though its connection still stands.
    """

    def __init__(
        self, app: App, bell: Bell, path: str, asker: Callable[[bytes], int], hold_s: float = HOLD_S,
        doubled: Callable[[Event], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._app, self._bell, self._path, self._asker, self._hold_s = app, bell, path, asker, hold_s
        self._doubled = doubled
        self._heard: dict[int, int] = {}  # by asker that was told "nothing": the rings before that

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        if scope.get("path") != self._path:
            await self._app(scope, receive, send)
            return
        body = await read_whole(receive)
        if body is None:
            return
        asker = self._asker(body)
        if asker in self._heard and not await self._wait(scope, asker, self._heard[asker], receive):
            await _turn_away(send)
            return
        heard, size = self._bell.rings(asker), 0

        async def counted(event: Event) -> None:
            nonlocal size
            size += len(event.get("body", b""))
            await send(event)

        await self._app(scope, replay(body, receive), counted)
        self._heard.pop(asker, None)
        if size == 0:
            self._heard[asker] = heard
            if len(self._heard) > MAX_KNOWN:
                del self._heard[next(iter(self._heard))]

    async def _wait(self, scope: Event, asker: int, heard: int, receive: Receive) -> bool:
        """Whether the asker is still there once it is to be answered."""
        gone = asyncio.ensure_future(receive())
        bell = asyncio.ensure_future(self._bell.wait(asker, heard, self._hold_s))
        try:
            await asyncio.wait((gone, bell), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return False
            if not bell.result():
                self._doubled(scope)
            return bell.result()
        finally:
            gone.cancel()
            bell.cancel()


async def read_whole(receive: Receive) -> bytes | None:
    """The body of a request; None if the other side is gone."""
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] != "http.request":
            return None
        body += event.get("body", b"")
        if not event.get("more_body", False):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that yields `body` once, then what the connection yields."""
    pending: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Event:
        return pending.pop() if pending else await receive()

    return again


async def _turn_away(send: Send) -> None:
    """Answer 503, for a connection that nobody reads any more."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
