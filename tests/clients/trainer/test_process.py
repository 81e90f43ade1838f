"""The trainer as a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.clients.orders.house import House, planned, training, whole
from tests.server.agency import make_institution

from sovfed.clients.trainer.service import make_trainer
from sovfed.clients.trainer.socket import NAME, TrainerStub
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.evidence.keys import establish
from sovfed.federation.files import private_directory, write_atomic, write_private
from sovfed.federation.messages import (
    ProfileReply,
    ProfileRequest,
    Reply,
    RunReply,
    RunRequest,
    TrainReply,
    TrainRequest,
)
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
TRAINER = ("-m", "sovfed.clients.trainer.process")
TASK = get_task("breast_cancer")
PLAN = planned("task=breast_cancer", "secagg=none")


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
