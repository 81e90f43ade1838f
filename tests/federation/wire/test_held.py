"""Requests that wait until there is something to say, with a real server, real connections and both ways to go away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
import uvicorn

from sovfed.federation.wire.held import Bell, Event, Held, Receive, Send


class Counter:
    """An app that hands out what lies in its box, once, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked, self.box = 0, b""

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await receive()
        self.asked += 1
        content, self.box = self.box, b""
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


class Served:
    def __init__(self, hold_s: float) -> None:
        self.app, self.bell, self.doubled = Counter(), Bell(), list[str]()
        held = Held(
            self.app, self.bell, "/ask", lambda body: int(body or b"0"), hold_s,
            lambda scope: self.doubled.append(scope["client"][0]),
        )  # fmt: skip
        self.server = uvicorn.Server(
            uvicorn.Config(held, port=0, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        self.pool = ThreadPoolExecutor(4)

    def ask(self, asker: int = 1, timeout_s: float = 30.0, path: str = "/ask") -> httpx.Response:
        return httpx.post(self.url + path, content=str(asker), timeout=timeout_s, trust_env=False)

    def asking(self, asker: int = 1) -> Future[httpx.Response]:
        """A request that is kept waiting."""
        future = self.pool.submit(self.ask, asker)
        while asker not in self.bell._waiting:
            time.sleep(0.01)
        return future


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served(hold_s=30.0)
    yield made
    made.server.should_exit = True
    made.thread.join(10)


def test_the_first_request_is_answered_at_once_and_the_next_when_something_has_come(served: Served) -> None:
    assert served.ask().content == b""
    waiting = served.asking()
    assert served.app.asked == 1
    served.app.box = b"a message"
    served.bell.ring([1])
    assert waiting.result(10).content == b"a message"
    assert served.ask().content == b""  # it was given something: there may be more, so that it need not wait


def test_only_who_is_rung_for_is_woken_and_what_came_meanwhile_is_not_missed(served: Served) -> None:
    for asker in (1, 2):
        served.ask(asker)
    first, second = served.asking(1), served.asking(2)
    served.bell.ring([2])
    assert second.result(10).status_code == 200
    assert not first.done()
    served.bell.ring([1])
    first.result(10)
    served.bell.ring([2])  # while nobody waits
    before = served.app.asked
    assert served.ask(2, timeout_s=10.0).status_code == 200
    assert served.app.asked == before + 1


def test_a_request_is_not_kept_for_longer_than_it_may() -> None:
    made = Served(hold_s=0.2)
    made.ask()
    assert made.ask(timeout_s=10.0).status_code == 200
    assert made.app.asked == 2
    made.server.should_exit = True
    made.thread.join(10)


def test_who_has_gone_or_asked_anew_takes_nothing_away(served: Served) -> None:
    """A message that goes to a connection nobody reads is lost: Flower hands each out once."""
    served.ask()
    with pytest.raises(httpx.ReadTimeout):
        served.ask(timeout_s=1.0)
    while served.bell._waiting:  # its end is noticed
        time.sleep(0.01)
    assert not served.doubled
    zombie = served.asking()
    living = served.pool.submit(served.ask, 1)
    assert zombie.result(10).status_code == 503
    assert served.doubled == ["127.0.0.1"]  # whose connection stood
    served.app.box = b"a message"
    served.bell.ring([1])
    assert living.result(10).content == b"a message"


def test_other_paths_are_not_touched_and_nobody_waits_once_the_bell_is_closed(served: Served) -> None:
    assert [served.ask(path="/other").status_code for _ in range(3)] == [200] * 3
    served.ask()
    waiting = served.asking()
    loop = served.bell._loop
    assert loop is not None
    loop.call_soon_threadsafe(served.bell.close)
    assert waiting.result(10).status_code == 200
    assert served.ask(timeout_s=10.0).status_code == 200


def test_a_ring_between_the_look_and_its_answer_is_heard() -> None:
    """The app has looked and found nothing, then something comes, and only then is its answer sent."""

    async def scene() -> None:
        bell = Bell()

        async def app(scope: Event, receive: Receive, send: Send) -> None:
            bell.ring([1])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        held = Held(app, bell, "/ask", lambda _: 1, hold_s=3600.0)
        for _ in range(2):
            body: list[Event] = [{"type": "http.request", "body": b"1", "more_body": False}]

            async def receive(body: list[Event] = body) -> Event:
                if not body:
                    await asyncio.Event().wait()
                return body.pop()

            async def send(_: Event) -> None:
                pass

            await asyncio.wait_for(held({"type": "http", "path": "/ask"}, receive, send), 10)

    asyncio.run(scene())
