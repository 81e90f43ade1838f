"""The trainer's socket, served in this process: who may connect, and what becomes of connections."""

from __future__ import annotations

import contextlib
import socket
import stat
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.federation.test_files import no_descriptor

from sovfed.clients.trainer.frames import frame_and_file, from_frame
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.clients.trainer.socket import MAX_CONNECTIONS, NAME, TrainerStub, receive, serve
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ServiceError
from sovfed.federation.messages import LaneOffer, Message, Refusal, Reply, Request, TrainReply, TrainRequest
from sovfed.federation.stored import in_memory
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.wire.trainer_pb2 import HealthReply

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
ECHO = get_task("echo")


def train_request(size: int = 31) -> TrainRequest:
    return TrainRequest(
        run="r", round=1, task="echo", seed=1, local_epochs=1, batch_size=32, learning_rate=0.1, proximal_mu=0.0,
        model=np.arange(size, dtype=np.float32), scale=np.array([0.1, 3.0]), digest=ECHO.digest,
    )  # fmt: skip


@contextmanager
def served(home: Path, service: TrainerService, limit: int = 64 * MIB) -> Iterator[TrainerStub]:
    server, stub = serve(service, home / NAME, limit), TrainerStub(home / NAME, limit, timeout_s=20.0)
    try:
        yield stub
    finally:
        stub.close()
        server.stop(1.0)


def echo() -> TrainerService:
    return make_trainer(ClientConfig(data=DataConfig(source="none")))


def test_a_request_goes_through_the_socket_and_nobody_else_may_open_it(home: Path) -> None:
    with served(home, echo()) as stub:
        reply = stub.answer(train_request(100_000))
        assert isinstance(reply, TrainReply)
        assert reply.update.tolist() == [1.0] * 100_000
        assert stub.health().answered == 1
        assert stat.S_IMODE((home / NAME).stat().st_mode) == 0o600
    home.chmod(0o750)
    with pytest.raises(ServiceError, match="0700"):
        serve(echo(), home / NAME, MIB)


def test_what_a_trainer_does_not_answer_is_refused(home: Path) -> None:
    with served(home, echo()) as stub:
        offer = LaneOffer("r", "a:1", "t" * 32, 0, np.zeros(1, np.uint8), np.zeros(64, np.uint8))
        assert stub.answer(offer) == Refusal(reason="protocol")  # type: ignore[arg-type]


def test_a_message_over_the_limit_is_a_service_error_not_an_allocation(home: Path) -> None:
    server = serve(echo(), home / NAME, MIB)
    stub = TrainerStub(home / NAME, 64 * MIB, timeout_s=20.0)
    with pytest.raises(ServiceError, match="no message as long as this"):
        stub.answer(train_request(MIB))
    stub.close()
    server.stop(1.0)


def test_a_stale_socket_is_replaced_and_a_path_too_long_is_said(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(home / NAME))
    with served(home, echo()) as stub:
        assert isinstance(stub.answer(train_request()), TrainReply)
    with pytest.raises(ServiceError, match="107 bytes"):
        TrainerStub(home / ("x" * 120) / NAME, MIB)


def test_the_stub_waits_for_a_trainer_that_starts_later(home: Path) -> None:
    stub = TrainerStub(home / NAME, MIB, timeout_s=20.0)
    replies: list[Reply] = []
    waiting = threading.Thread(target=lambda: replies.append(stub.answer(train_request())))
    waiting.start()
    time.sleep(0.5)
    server = serve(echo(), home / NAME, MIB)
    waiting.join(20.0)
    stub.close()
    server.stop(1.0)
    assert isinstance(replies[0], TrainReply)


def test_the_stub_gives_up_at_its_deadline_and_when_closed(home: Path) -> None:
    stub = TrainerStub(home / NAME, MIB, timeout_s=0.3)
    with pytest.raises(ServiceError, match="no trainer for"):
        stub.answer(train_request())
    with pytest.raises(ServiceError):
        stub.health(0.2)
    stub.close()


def test_an_answer_may_take_longer_than_a_trainer_may_be_away(home: Path) -> None:
    """Seen: local training of more than an hour failed, whatever the round's deadline was."""

    class Slow:
        def answer(self, request: Request) -> Reply:
            time.sleep(1.5)
            return echo().answer(request)

        def health(self) -> HealthReply:
            return HealthReply()

    server, stub = serve(Slow(), home / NAME, MIB), TrainerStub(home / NAME, MIB, timeout_s=0.3)
    try:
        assert isinstance(stub.answer(train_request()), TrainReply)
    finally:
        stub.close()
        server.stop(1.0)


def _connected(home: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(home / NAME))
    connection.settimeout(20.0)
    return connection


def _said(connection: socket.socket) -> Message:
    """What the trainer answers, after which it has closed the connection."""
    _, frame, _ = receive(connection, MIB)
    with contextlib.suppress(ConnectionResetError):  # it has not read all that it was sent
        assert connection.recv(1) == b""
    return from_frame(frame)


@pytest.mark.parametrize("kind", ["unsealed", "socket", "too long"])
def test_a_gateway_that_was_taken_over_hands_over_no_other_descriptor(home: Path, kind: str) -> None:
    """What it could still write into, or cut short, would be another model than the one that was checked."""
    parts, stored = frame_and_file(train_request(100_000))
    assert stored is not None
    unsealed, (one, other) = in_memory(stored.size), socket.socketpair()
    unsealed.write(0, stored.view())
    descriptor = {"unsealed": unsealed.descriptor, "socket": one.fileno(), "too long": stored.descriptor}[kind]
    with served(home, echo(), limit=MIB if kind != "too long" else 1000) as stub, _connected(home) as connection:
        frame = b"".join(parts)
        socket.send_fds(connection, [struct.pack("<BI", 1, len(frame)), frame], [descriptor])
        assert isinstance(_said(connection), Refusal)
        assert isinstance(stub.answer(train_request()), TrainReply)  # the trainer goes on
    one.close()
    other.close()


@pytest.mark.parametrize("length", [MIB + 1, 2**32 - 1])
def test_a_claim_of_a_long_frame_is_refused_before_allocation(home: Path, length: int) -> None:
    with served(home, echo()) as stub, _connected(home) as connection:
        connection.sendall(struct.pack("<BI", 1, length))
        assert isinstance(_said(connection), Refusal)
        assert stub.health().answered == 0


def test_connections_are_bounded_and_those_that_say_nothing_keep_nobody_out_for_ever(home: Path) -> None:
    with served(home, echo()) as stub:
        silent = [_connected(home) for _ in range(MAX_CONNECTIONS + 8)]
        for connection in silent:
            connection.close()
        assert isinstance(stub.answer(train_request()), TrainReply)


def test_a_trainer_that_has_no_descriptor_left_for_a_moment_is_not_deaf_from_then_on(home: Path) -> None:
    """It took no connection any more, and lived on with a pulse: every run waited for it."""
    with served(home, echo()) as stub, socket.socket(socket.AF_UNIX) as waiting:
        assert stub.health().answered == 0
        with no_descriptor():
            waiting.connect(str(home / NAME))
            time.sleep(0.3)
        with contextlib.closing(TrainerStub(home / NAME, MIB, timeout_s=20.0)) as other:
            assert isinstance(other.answer(train_request()), TrainReply)


def test_no_thread_is_begun_for_a_request(home: Path) -> None:
    """At its limit of memory a new thread ends before it begins, and Python waits for ever that it has begun."""
    with served(home, echo()) as stub:
        before = set(threading.enumerate())
        assert isinstance(stub.answer(train_request()), TrainReply)
        assert {thread.name for thread in threading.enumerate() if thread not in before} == set()
