"""The spool: what the socket does between two processes of a machine, by files between two machines of a cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.clients.trainer.test_socket import echo, train_request

from sovfed.clients.trainer.socket import Service
from sovfed.clients.trainer.spool import AT_ONCE, REPLIES, REQUESTS, SpoolServer, SpoolStub, make_folders, waiting
from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.messages import Refusal, Reply, Request, TrainReply
from sovfed.federation.wire.trainer_pb2 import HealthReply

MIB = 1 << 20


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


@contextmanager
def serving(home: Path, service: Service, most_bytes: int = MIB) -> Iterator[SpoolServer]:
    server = SpoolServer(service, home, most_bytes)
    try:
        yield server
    finally:
        server.stop(1.0)


class Held:
    """Says that it was asked, and answers when it may."""

    def __init__(self) -> None:
        self.asked, self.may = threading.Event(), threading.Event()
        self._answers = echo()

    def answer(self, request: Request) -> Reply:
        self.asked.set()
        assert self.may.wait(60)
        return self._answers.answer(request)

    def health(self) -> HealthReply:
        return self._answers.health()


def asking(stub: SpoolStub, replies: list[Reply]) -> threading.Thread:
    thread = threading.Thread(target=lambda: replies.append(stub.answer(train_request(100))))
    thread.start()
    return thread


def test_a_reply_is_what_the_trainer_itself_would_say_and_nothing_stays_behind(home: Path) -> None:
    request = train_request(1000)
    with serving(home, echo()):
        stub = SpoolStub(home, MIB, 60.0)
        reply = stub.answer(request)
    expected = echo().answer(request)
    assert isinstance(reply, TrainReply)
    assert isinstance(expected, TrainReply)
    assert np.array_equal(reply.update, expected.update)
    assert [*(home / REQUESTS).iterdir(), *(home / REPLIES).iterdir()] == []


def test_a_request_waits_for_a_trainer_that_is_not_there_yet(home: Path) -> None:
    stub, replies = SpoolStub(home, MIB, 60.0), list[Reply]()
    thread = asking(stub, replies)
    while not waiting(home):
        time.sleep(0.01)
    with serving(home, echo()):
        thread.join(60)
    assert isinstance(replies[0], TrainReply)


def test_what_a_trainer_that_ended_had_begun_its_successor_answers(home: Path) -> None:
    stub, replies, first = SpoolStub(home, MIB, 60.0), list[Reply](), Held()
    with serving(home, first) as server:
        thread = asking(stub, replies)
        assert first.asked.wait(60)
        assert server.idle_s() == 0.0
    assert waiting(home) != []
    with serving(home, echo()):
        thread.join(60)
    first.may.set()
    assert isinstance(replies[0], TrainReply)


def test_a_stopped_trainer_takes_nothing_more_and_an_idle_one_says_since_when(home: Path) -> None:
    stub = SpoolStub(home, MIB, 0.5)
    with serving(home, echo()) as server:
        stub.answer(train_request(10))
        time.sleep(0.05)
        assert server.idle_s() > 0.0
        server.stop(0.0)
        with pytest.raises(ServiceError, match="no job has answered"):
            stub.answer(train_request(10))
    assert waiting(home) == []  # who gave up takes the question back


def test_a_frame_that_is_none_is_refused_and_one_that_is_too_large_not_read(home: Path) -> None:
    with serving(home, echo(), most_bytes=4096):
        for content in (b"", b"\xff" * 100):
            name = f"{len(content):032x}"
            (home / REQUESTS / name).write_bytes(content)
            while not (home / REPLIES / name).exists():
                time.sleep(0.01)
        large = "f" * 32
        (home / REQUESTS / large).write_bytes(bytes(4097))
        (home / REQUESTS / "README").write_bytes(b"x")
        time.sleep(0.3)
        assert not (home / REPLIES / large).exists()
        assert not (home / REPLIES / "README").exists()


def test_a_reply_that_does_not_fit_is_refused_by_the_gateway(home: Path) -> None:
    with serving(home, echo()), pytest.raises(ProtocolError, match="expected at most 64"):
        SpoolStub(home, 64, 60.0).answer(train_request(1000))


def test_what_an_earlier_gateway_left_is_removed(home: Path) -> None:
    make_folders(home)
    for folder in (REQUESTS, REPLIES):
        (home / folder / ("a" * 32)).write_bytes(b"x")
        (home / folder / f".{'b' * 32}").write_bytes(b"x")
    SpoolStub(home, MIB, 1.0)
    assert [*(home / REQUESTS).iterdir(), *(home / REPLIES).iterdir()] == []


def test_closing_ends_the_wait(home: Path) -> None:
    stub, errors = SpoolStub(home, MIB, 60.0), list[Exception]()

    def ask() -> None:
        try:
            stub.answer(train_request(1))
        except ServiceError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    stub.close()
    thread.join(60)
    assert "closed" in str(errors[0])


def test_a_spool_that_others_may_enter_is_refused(home: Path) -> None:
    (home / "spool").mkdir(mode=0o755)
    (home / "spool").chmod(0o755)
    with pytest.raises(ServiceError):
        make_folders(home)


def test_a_refusal_travels_too(home: Path) -> None:
    class Refusing(Held):
        def answer(self, request: Request) -> Reply:
            return Refusal(reason="policy")

    with serving(home, Refusing()):
        assert SpoolStub(home, MIB, 60.0).answer(train_request(1)) == Refusal(reason="policy")


def test_what_is_put_in_the_way_of_a_reply_is_not_written_through(home: Path, tmp_path: Path) -> None:
    """As by a gateway that was taken over, for a ledger that it may not write itself."""
    ledger = tmp_path / "ledger"
    ledger.write_text("what was spent")
    held = Held()
    with serving(home, held):
        stub, replies = SpoolStub(home, MIB, 60.0), list[Reply]()
        thread = asking(stub, replies)
        assert held.asked.wait(60)
        (name,) = waiting(home)
        (home / REPLIES / f".{name}").symlink_to(ledger)
        held.may.set()
        thread.join(60)
    assert len(replies) == 1
    assert ledger.read_text() == "what was spent"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_request_that_is_no_plain_file_is_not_opened_and_keeps_no_other_waiting(
    home: Path, tmp_path: Path, kind: str
) -> None:
    make_folders(home)
    (tmp_path / "elsewhere").write_bytes(b"a key")
    with serving(home, echo()):
        stub = SpoolStub(home, MIB, 60.0)
        for number in range(2 * AT_ONCE):
            path = home / REQUESTS / f"{number:032x}"
            if kind == "link":
                path.symlink_to(tmp_path / "elsewhere")
            else:
                os.mkfifo(path)
        assert isinstance(stub.answer(train_request(100)), TrainReply)
    assert list((home / REPLIES).iterdir()) == []
