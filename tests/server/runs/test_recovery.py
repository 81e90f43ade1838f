"""A run that a person stops stays stopped, whatever is being done for it at that moment."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.federation.tasks.declared_cases import text_of

from sovfed.federation.compose import compose
from sovfed.federation.errors import (
    AwayError,
    CohortError,
    ConfigError,
    DeclinedError,
    LostError,
    NotReadNowError,
    ServiceError,
)
from sovfed.federation.files import private_directory
from sovfed.federation.wire.loopback import ensure_secret
from sovfed.server.runs import app, coordinators, folders, recovery
from sovfed.server.runs.awaiting import why_waiting
from sovfed.server.runs.control import LOOPBACK_SECRET
from sovfed.server.runs.curves import ROUNDS
from sovfed.server.runs.executor import Executor
from sovfed.server.runs.recovery import Recovery
from sovfed.server.runs.serverapp_runner import Stopped

OLD, NEW = 7, 8  # Flower's numbers


class Flower:
    """Stands where the superlink's client does; `meanwhile` happens while a run is being started or stopped."""

    def __init__(self) -> None:
        self.started, self.stopped = list[int](), list[int]()
        self.at_start: Callable[[], None] = lambda: None
        self.at_stop: Callable[[], None] = lambda: None
        self.over = False

    def start_run(self, _spec: Mapping[str, Any]) -> int:
        self.at_start()
        self.started.append(NEW if self.started else OLD)
        return self.started[-1]

    def stop_run(self, run_id: int) -> None:
        self.stopped.append(run_id)
        self.at_stop()

    def is_over(self, _run_id: int) -> bool:
        return self.over


@pytest.fixture
def flower() -> Flower:
    return Flower()


@pytest.fixture
def home(tmp_path: Path, flower: Flower) -> Path:
    """With a run that was interrupted, and is due."""
    home = private_directory(tmp_path / "agency")
    folders.start_run(flower, home, "study", compose([]).config, resume=False)  # type: ignore[arg-type]
    folders.write_state(folders.run_folder(home, "study"), folders.read_state(home, "study"), folders.INTERRUPTED)
    return home


def status(home: Path) -> str:
    return str(folders.read_state(home, "study")["status"])


def serve(home: Path, run_id: int) -> None:
    """The coordinator that the executor starts for a task of Flower's."""
    app.serve_run(SimpleNamespace(run=SimpleNamespace(run_id=run_id)), {"name": "study", "resume": True}, home)  # type: ignore[arg-type]


def test_a_run_that_is_stopped_while_it_is_taken_up_stays_stopped(home: Path, flower: Flower) -> None:
    stopping = threading.Thread(target=folders.stop_run, args=(flower, home, "study"))

    def stop() -> None:
        stopping.start()
        while status(home) != folders.STOPPING:
            time.sleep(0.01)

    flower.at_start = stop
    Recovery(home, flower).step()  # type: ignore[arg-type]
    stopping.join()
    assert (status(home), flower.started, flower.stopped[-1]) == ("stopped", [OLD, NEW], NEW)
    with pytest.raises(Stopped, match="study is stopped"):
        serve(home, NEW)  # the executor had its task already
    assert status(home) == "stopped"


def test_a_run_that_was_stopped_after_the_look_at_it_is_not_taken_up(home: Path, flower: Flower) -> None:
    def stop() -> None:
        folders.write_state(folders.run_folder(home, "study"), folders.read_state(home, "study"), "stopped")

    flower.at_stop = stop
    Recovery(home, flower).step()  # type: ignore[arg-type]
    assert (status(home), flower.started) == ("stopped", [OLD])


@pytest.mark.parametrize("over", [False, True])
def test_a_run_that_waits_for_its_first_coordinator_is_taken_up_once_flower_has_none_for_it(
    home: Path, flower: Flower, over: bool
) -> None:
    """Seen: with Flower's database its task was lost, and it was said to start for ever."""
    folder = folders.run_folder(home, "study")
    folders.write_state(folder, {**folders.read_state(home, "study"), "flower_run_id": OLD}, folders.STARTING)
    flower.over = over
    Recovery(home, flower).step()  # type: ignore[arg-type]
    assert flower.started == ([OLD, NEW] if over else [OLD])


@pytest.mark.parametrize("resume", [False, True])
def test_of_two_who_start_a_run_at_once_one_is_refused_and_changes_nothing(
    home: Path, flower: Flower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """Seen: both were told that theirs had started, and the one that ran had the other's task.yaml."""
    name = "study" if resume else "other"
    (tmp_path / "mine.yaml").write_text(text_of())
    mine, theirs = compose([f"task={tmp_path / 'mine.yaml'}"]).config, compose([]).config

    def check(*_: object) -> None:
        monkeypatch.undo()
        folders.start_run(flower, home, name, theirs, resume=resume)  # type: ignore[arg-type]

    monkeypatch.setattr(folders, "require_approved", check)
    before = len(flower.started)
    with pytest.raises(ConfigError, match=f"'{name}' was started by somebody else at the same moment"):
        folders.start_run(flower, home, name, mine, resume=resume)  # type: ignore[arg-type]
    assert len(flower.started) == before + 1 and not (folders.run_folder(home, name) / folders.FILE).exists()
    assert folders.stored_config(home, name).task.file is None


@pytest.mark.parametrize(("rounds", "taken_up"), [(2, False), (3, True)])
def test_pauses_count_tries_without_a_new_round_only(home: Path, flower: Flower, rounds: int, taken_up: bool) -> None:
    """Seen: killed four times in a minute, a run that went on each time waited longer and longer."""
    folder = folders.run_folder(home, "study")
    (folder / ROUNDS).write_text("".join(json.dumps({"round": number + 1}) + "\n" for number in range(rounds)))
    tried = {"round": 2, "count": 3, "at": time.time()}
    (folder / recovery.TRIED).write_text(json.dumps(tried))
    Recovery(home, flower).step()  # type: ignore[arg-type]
    assert flower.started == ([OLD, NEW] if taken_up else [OLD])
    assert json.loads((folder / recovery.TRIED).read_text())["count"] == (1 if taken_up else 3)


def test_a_run_that_fails_while_it_is_stopped_is_stopped(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Institutions that go away with the stop would else have it interrupted, and taken up again."""

    def fail(*_: object) -> None:
        folder = folders.run_folder(home, "study")
        (folder / "rounds.jsonl").write_text('{"round": 1, "participants": []}\n')
        folders.write_state(folder, folders.read_state(home, "study"), folders.STOPPING)
        raise CohortError("1 institutions are connected")

    monkeypatch.setattr(app, "_train", fail)
    tracker = SimpleNamespace(note=lambda _: None, finish=lambda *_, **__: None)
    monkeypatch.setattr(app, "Tracker", lambda *_: tracker)
    with pytest.raises(CohortError):
        serve(home, OLD)
    assert status(home) == "stopped"


def test_a_coordinator_that_cannot_begin_is_told_of_at_once_and_not_tried_for_ever(
    home: Path, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: one that died on an import left its run 'starting', and was started again and again for a day."""
    monkeypatch.setattr(recovery, "LOOK_S", 0.0)
    monkeypatch.setattr(recovery, "PAUSES_S", (0.0,))
    ensure_secret(home / LOOPBACK_SECRET)
    executor = Executor(home, 1, [sys.executable, "-c", "import no_such_module"])
    taken_up = Recovery(home, flower)  # type: ignore[arg-type]
    for death in range(1, recovery.DEATHS + 1):
        taken_up.step()
        assert status(home) == folders.STARTING
        executor._spawn(NEW, "token")
        while executor._children:
            executor._reap()
        state = folders.read_state(home, "study")
        assert (state["status"], recovery.last_try(folders.run_folder(home, "study")).died) == ("interrupted", death)
        assert "died before it began (exit code 1)" in state["reason"]
    taken_up.step()
    taken_up.step()
    assert status(home) == "failed" and len(flower.started) == 1 + recovery.DEATHS
    assert "5 times: its coordinator died" in folders.read_state(home, "study")["reason"]


COORDINATOR = """
import fcntl, sys, time
from pathlib import Path
from sovfed.federation.host.pulse import Pulse
lock = open(Path(sys.argv[1]) / "lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
Pulse(Path(sys.argv[1]) / "pulse").start()
print("up", flush=True)
time.sleep(60)
"""


def test_a_coordinator_that_hangs_is_killed_and_its_run_taken_up(
    home: Path, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: a hung coordinator held its run for ever. One that works is left alone for as long as it likes."""
    monkeypatch.setattr(recovery, "LOOK_S", 0.1)
    folder = folders.run_folder(home, "study")
    with subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(folder), coordinators.COORDINATOR], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / ".src")},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        folders.write_state(folder, {**folders.read_state(home, "study"), "pid": process.pid}, "running")
        taken_up = Recovery(home, flower, hang_s=3.0)  # type: ignore[arg-type]
        until = time.monotonic() + 6.0
        while time.monotonic() < until:
            taken_up.step()
            time.sleep(0.05)
        assert process.poll() is None and flower.started == [OLD]
        process.send_signal(signal.SIGSTOP)
        while process.poll() is None:
            taken_up.step()
            time.sleep(0.05)
    while flower.started == [OLD]:
        taken_up.step()
    assert status(home) == "starting"


def test_a_run_is_stopped_though_the_superlink_hangs(home: Path, flower: Flower) -> None:
    """Its coordinator is told by a signal, and who ended the run is told apart from a task that was dropped."""
    folder = folders.run_folder(home, "study")
    with subprocess.Popen(
        [sys.executable, "-c", COORDINATOR, str(folder), coordinators.COORDINATOR], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / ".src")},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        folders.write_state(folder, {**folders.read_state(home, "study"), "pid": process.pid}, "running")

        def hang() -> None:
            process.wait(20.0)  # it ends before the superlink has said a word

        flower.at_stop = hang
        folders.stop_run(flower, home, "study")  # type: ignore[arg-type]
    state = folders.read_state(home, "study")
    assert (state["status"], state["reason"]) == ("stopped", "stopped by the operator")


@pytest.mark.parametrize(
    ("error", "rounds", "resume", "passes"),
    [
        (CohortError("too few"), 0, False, False),  # whoever starts a run is told at once
        (CohortError("too few"), 1, False, True),
        (CohortError("too few"), 0, True, True),  # the machine came up again, and the institutions not yet
        (LostError("a trainer was killed in the setup"), 0, False, True),
        (AwayError("no lane relay answers"), 0, False, True),  # its supervisor starts it again
        (ServiceError("too few institutions opened their stream"), 0, False, False),
        (OSError(28, "No space left on device"), 0, False, True),
        (MemoryError(), 0, False, True),
        (RuntimeError("can't start new thread"), 0, False, True),
        (RuntimeError("shapes do not fit"), 5, True, False),
        (sqlite3.OperationalError("unable to open database file"), 5, False, True),
        (NotReadNowError("key.pem: cannot be read now: Too many open files"), 0, False, True),
        (DeclinedError("they would again"), 5, True, False),
        (ConfigError("no such strategy"), 5, True, False),
    ],
)
def test_what_may_pass_by_itself_is_no_failure(
    tmp_path: Path, error: Exception, rounds: int, resume: bool, passes: bool
) -> None:
    (tmp_path / ROUNDS).write_text('{"round": 1}\n' * rounds)
    assert app._passes(error, tmp_path, resume) is passes


def test_a_run_goes_on_in_a_home_that_was_moved_meanwhile(tmp_path: Path, flower: Flower) -> None:
    """Its own copies of the task's file and of the model that it began with were looked for in the old place."""
    before, task = private_directory(tmp_path / "before"), tmp_path / "birth.yaml"
    task.write_text(text_of())
    config = compose([f"task={task}"]).config
    folders.start_run(flower, before, "study", config, resume=False)  # type: ignore[arg-type]
    folders.write_state(folders.run_folder(before, "study"), folders.read_state(before, "study"), folders.INTERRUPTED)
    task.unlink()
    after = before.rename(tmp_path / "after")
    Recovery(after, flower).step()  # type: ignore[arg-type]
    assert flower.started == [OLD, NEW]
    assert folders.stored_config(after, "study").task.file == str(after / "runs" / "study" / folders.FILE)


def test_what_keeps_a_run_from_being_taken_up_is_told_by_run_show(home: Path, flower: Flower) -> None:
    def fail() -> None:
        raise ServiceError("no room for another run")

    flower.at_start = fail
    Recovery(home, flower).step()  # type: ignore[arg-type]
    (said,) = why_waiting(folders.read_run(home, "study"), folders.run_folder(home, "study"), None)
    assert "in 5 s" in said or "in 4 s" in said or "in 3 s" in said
    assert said.endswith("(1 tries without a new round: no room for another run)")
