"""The trainer's socket: frames that lie, a server in this process, and the trainer as a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.clients.orders.house import House, planned, training, whole
from tests.federation.test_files import no_descriptor
from tests.server.agency import make_institution

from sovfed.clients.trainer.frames import frame_and_file, from_frame, to_frame
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.clients.trainer.socket import MAX_CONNECTIONS, NAME, TrainerStub, receive, serve
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.evidence.keys import establish
from sovfed.federation.files import private_directory, write_atomic, write_private
from sovfed.federation.messages import (
    LaneOffer,
    Message,
    ProfileReply,
    ProfileRequest,
    Refusal,
    Reply,
    Request,
    RunReply,
    RunRequest,
    TrainReply,
    TrainRequest,
)
from sovfed.federation.stored import in_memory
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.wire.trainer_pb2 import Envelope, HealthReply, Vector

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
TRAINER = ("-m", "sovfed.clients.trainer.process")
TASK = get_task("breast_cancer")
ECHO = get_task("echo")
PLAN = planned("task=breast_cancer", "secagg=none")


def train_request(size: int = 31) -> TrainRequest:
    return TrainRequest(
        run="r", round=1, task="echo", seed=1, local_epochs=1, batch_size=32, learning_rate=0.1, proximal_mu=0.0,
        model=np.arange(size, dtype=np.float32), scale=np.array([0.1, 3.0]), digest=ECHO.digest,
    )  # fmt: skip


@pytest.fixture
def home() -> Iterator[Path]:
    """A private folder whose path is short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="sovfed-"))
    yield folder
    shutil.rmtree(folder)


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


@pytest.mark.parametrize("size", [1, 2, 31, 1000])
def test_a_frame_gives_the_message_back_without_copying_its_vectors(size: int) -> None:
    request = train_request(size)
    frame = to_frame(request)
    found = from_frame(frame)
    assert isinstance(found, TrainRequest)
    assert np.array_equal(found.model, request.model)
    assert np.array_equal(found.scale, request.scale)
    assert (found.learning_rate, found.run, found.seed) == (0.1, "r", 1)
    assert np.shares_memory(found.model, np.frombuffer(frame, dtype=np.uint8))
    assert found.model.flags.aligned
    assert found.scale.flags.aligned


def _frame(envelope: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<I", len(envelope)) + envelope + bytes(-(4 + len(envelope)) % 8) + payload


def _profile(payload: bytes = bytes(24), **changes: object) -> bytes:
    vector = {"name": "sums", "dtype": "float64", "length": 3, **changes}
    envelope = Envelope(kind="profile-reply", scalars='{"version": 1}', vectors=[Vector(**vector)])  # type: ignore[arg-type]
    return _frame(envelope.SerializeToString(), payload)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\xff\xff\xff",
        _frame(b"\xff\xff"),
        _frame(Envelope(kind="profile", scalars="{").SerializeToString()),
        _frame(Envelope(kind="profile", scalars="[]").SerializeToString()),
        _frame(Envelope(kind="profile", scalars="[" * 20_000).SerializeToString()),
        _frame(Envelope(kind="steal", scalars="{}").SerializeToString()),
        _profile(dtype="object"),
        _profile(length=2_500_000_000),  # a claim of 20 GB
        _profile(length=2**64 - 1),
        _profile(length=2),
        _profile(payload=bytes(32)),
        _profile(payload=np.array([1.0, np.nan, 1.0]).tobytes()),
        to_frame(train_request())[:-1],
        to_frame(train_request()) + b"\0",
    ],
)
def test_a_frame_that_lies_is_refused(frame: bytes) -> None:
    assert isinstance(from_frame(_profile()), ProfileReply)
    with pytest.raises(ProtocolError):
        from_frame(frame)


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


def _environment() -> dict[str, str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _prepare_home(home: Path) -> RunRequest:
    """An institution's home, and the agency's question about the whole run, with its order."""
    policy = "allowed_tasks: [breast_cancer]\nallow_plain_updates: true\nrequire_privacy: false\n"
    write_private(home / "policy.yaml", policy.encode())
    house = House(private_directory(home / "others"))
    make_institution(house.authority, home / "identity", "hospital-1")
    write_atomic(home / "identity" / "crl.pem", house.authority.crl())
    establish(home)  # as `client up` does before its processes start
    request = whole(PLAN)
    return house.show(request, house.proposal(request, PLAN))


def _bound(stub: TrainerStub, shown: RunRequest) -> TrainerStub:
    """`stub`, whose trainer has said yes to the order."""
    assert isinstance(stub.answer(shown), RunReply)
    return stub


def _command(home: Path, device: str = "cpu") -> list[str]:
    return _command_with(home, json.dumps({"device": device, "data": {"source": "breast_cancer", "site": "3"}}))


def _command_with(home: Path, config: str) -> list[str]:
    write_private(home / "processes.json", config.encode())
    return [sys.executable, *TRAINER, "--home", str(home), "--config", f"{home}/processes.json"]


@contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """`command` in a session of its own, so that what strace or unshare started ends with it."""
    with subprocess.Popen(command, env=_environment(), stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _real_request() -> TrainRequest:
    model, scale = initial_vector(TASK, 0), TASK.transform.public_scale
    return training(PLAN, model=model, scale=scale, begin=np.zeros(0, np.uint8))


@pytest.mark.deploy
def test_a_killed_trainer_is_asked_again_and_gives_the_same_update(home: Path) -> None:
    shown = _prepare_home(home)
    here = make_trainer(ClientConfig(device="cpu", data=DataConfig(site="3"))).answer(_real_request())
    stub = TrainerStub(home / NAME, MIB, timeout_s=60.0)
    replies: list[Reply] = []
    with running(_command(home)) as first:
        replies.append(_bound(stub, shown).answer(_real_request()))
        first.kill()
        first.wait()
    waiting = threading.Thread(target=lambda: replies.append(stub.answer(_real_request())))
    waiting.start()
    with running(_command(home)) as second:
        waiting.join(60.0)
        second.terminate()
        assert second.wait(20) == 0
    stub.close()
    assert isinstance(here, TrainReply)
    for reply in replies:
        assert isinstance(reply, TrainReply)
        assert np.array_equal(reply.update, here.update)
    assert len(replies) == 2


@pytest.mark.deploy
def test_the_process_of_a_further_device_has_given_up_what_the_trainer_has_and_ends_with_it(home: Path) -> None:
    """Gradients pass between the two all the same: neither gloo nor NCCL could connect."""
    shown = _prepare_home(home)
    here = make_trainer(ClientConfig(device="cpu", data=DataConfig(site="3"))).answer(_real_request())
    arguments = _command(home, "cpu,cpu")[-4:]
    with running([sys.executable, "-m", "sovfed.clients.node.sandbox", "trainer", *arguments]) as trainer:
        stub = TrainerStub(home / NAME, MIB, timeout_s=120.0)
        reply = _bound(stub, shown).answer(_real_request())
        assert isinstance(here, TrainReply) and isinstance(reply, TrainReply)
        assert reply.update == pytest.approx(here.update, abs=1e-6)
        assert stub.health().device == "cpu, cpu"
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        (child,) = [pid for pid in pids if _given(pid)[0] == trainer.pid]
        assert _given(child)[1:] == _given(trainer.pid)[1:] != _given(os.getpid())[1:]
        stub.close()
        trainer.kill()
        trainer.wait()
        end = time.monotonic() + 20
        while _given(child)[0] and time.monotonic() < end:
            time.sleep(0.05)
        assert not _given(child)[0]


def _given(pid: int) -> tuple[int, str, str, str]:
    """A process's parent, filter, capabilities and network; zeros and nothing once it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        lines = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
        if lines["State"].startswith("Z"):
            return 0, "", "", ""
        with contextlib.suppress(PermissionError):
            return int(lines["PPid"]), lines["Seccomp"], lines["CapPrm"], str(Path(f"/proc/{pid}/ns/net").readlink())
        return int(lines["PPid"]), lines["Seccomp"], lines["CapPrm"], ""  # not root: nobody may look
    except (OSError, ValueError):
        return 0, "", "", ""


@pytest.mark.deploy
@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_the_trainer_binds_connects_and_sends_to_nothing_but_its_unix_socket(home: Path, device: str) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    shown = _prepare_home(home)
    trace = home / "trace"
    with running([strace, "-f", "--seccomp-bpf", "-e", "trace=%network", "-o", str(trace), *_command(home, device)]):
        stub = TrainerStub(home / NAME, MIB, timeout_s=60.0)
        assert isinstance(_bound(stub, shown).answer(_real_request()), TrainReply)
        stub.close()
        text = trace.read_text()
    assert set(re.findall(r"sa_family=(AF_\w+)", text)) == {"AF_UNIX"}
    assert re.findall(r"bind\(\d+, .*", text) == re.findall(rf'bind\(\d+, .*"{home / NAME}".*', text)


@pytest.mark.deploy
def test_a_signal_that_another_thread_takes_ends_the_trainer(home: Path) -> None:
    shown = _prepare_home(home)
    with running(_command(home)) as trainer:
        stub = TrainerStub(home / NAME, MIB, timeout_s=60.0)
        assert isinstance(_bound(stub, shown).answer(_real_request()), TrainReply)
        stub.close()
        threads = sorted(int(path.name) for path in Path(f"/proc/{trainer.pid}/task").iterdir())
        other = threads[1]  # the oldest: a signal is lost with a thread that ends
        assert ctypes.CDLL(None).tgkill(trainer.pid, other, signal.SIGTERM) == 0
        assert trainer.wait(20) == 0


@pytest.mark.deploy
def test_the_trainer_works_without_any_network(home: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces may not be made here")
    shown = _prepare_home(home)
    with running([unshare, "--net", *_command(home)]):
        stub = TrainerStub(home / NAME, MIB, timeout_s=60.0)
        assert isinstance(_bound(stub, shown).answer(_real_request()), TrainReply)
        assert isinstance(stub.answer(ProfileRequest(run="7", task=TASK.name, digest=TASK.digest)), ProfileReply)
        stub.close()


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ('{"device": "tpu"}', 2, "device"),
        ("{", 2, "not JSON"),
        ('{"data": {"source": "breast_cancer"}}', 3, "policy.yaml is missing"),
    ],
)
def test_a_trainer_that_may_not_start_says_why(home: Path, config: str, code: int, said: str) -> None:
    done = subprocess.run(
        _command_with(home, config), env=_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


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


def test_a_long_vector_lies_in_a_sealed_file_and_is_not_copied(home: Path) -> None:
    parts, stored = frame_and_file(train_request(100_000))
    assert stored is not None
    assert sum(map(len, parts)) < 2_000
    found = from_frame(b"".join(parts), stored)
    assert isinstance(found, TrainRequest)
    assert np.array_equal(found.model, np.arange(100_000, dtype=np.float32))
    assert frame_and_file(found)[1] is stored  # and goes on as it is
    with pytest.raises(ValueError, match="read-only"):
        found.model[0] = 1


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


def test_a_vector_beyond_the_end_of_its_file_is_refused() -> None:
    stored = in_memory(32)
    stored.seal()
    for offset, length in ((0, 5), (8, 4), (2**64 - 8, 1), (0, 2**61)):
        vector = Vector(name="sums", dtype="float64", length=length, offset=offset)
        envelope = Envelope(kind="profile-reply", scalars='{"version": 1}', vectors=[vector]).SerializeToString()
        with pytest.raises(ProtocolError, match="does not fit"):
            from_frame(_frame(envelope), stored)
        with pytest.raises(ProtocolError, match="does not fit"):
            from_frame(_frame(envelope))


def test_many_vectors_over_the_same_bytes_take_no_memory() -> None:
    """A gateway that was taken over could have had the trainer copy one file a thousand times."""
    stored = in_memory(32 * MIB)
    stored.seal()
    vectors = [Vector(name=f"v{number}", dtype="float64", length=4 * MIB - 1, offset=1) for number in range(1_000)]
    envelope = Envelope(kind="profile-reply", scalars='{"version": 1}', vectors=vectors).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="same bytes"):
            from_frame(_frame(envelope), stored)
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()


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
