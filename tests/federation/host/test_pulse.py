"""Processes that hang, with real ones: stopped by a signal, and with a loop that no longer comes round."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
from tests.federation.host.test_processes import python, running, status_of, wait_for

from sovfed.federation.host.processes import Process
from sovfed.federation.host.pulse import Beat, Silence, pulse_file

LIVELY = "from pathlib import Path; from sovfed.federation.host.pulse import Pulse; import time; p = Pulse(Path({!r}))"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def lively(home: Path, program: str, *, hang_s: float = 3.0) -> Process:
    path = pulse_file(home, "worker")
    process = python("worker", f"{LIVELY.format(str(path))}.start(); {program}")
    environment = {**process.env, "PYTHONPATH": str(Path(__file__).parents[3] / ".src")}
    return dataclasses.replace(process, env=environment, pulse=path, hang_s=hang_s)


@pytest.mark.deploy
def test_a_stopped_process_is_started_again_and_one_that_works_is_not(home: Path) -> None:
    with running(home, lively(home, "time.sleep(60)")):
        wait_for(lambda: status_of(home, "worker").state == "ready")
        before = status_of(home, "worker").pid
        assert before is not None
        time.sleep(2 * 3.0)
        assert status_of(home, "worker").pid == before
        os.kill(before, signal.SIGSTOP)
        wait_for(lambda: status_of(home, "worker").pid not in (None, before))
        assert "no sign of life for" in (home / "logs" / "worker.log").read_text()


@pytest.mark.deploy
def test_a_loop_that_hangs_is_found_though_its_process_lives_and_its_stack_is_in_the_log(home: Path) -> None:
    hangs = "b = p.watch('reader', 1.0); b(); exec('def stuck():\\n time.sleep(60)\\nstuck()')"
    with running(home, lively(home, hangs)):
        wait_for(lambda: status_of(home, "worker").restarts >= 1)
        log = (home / "logs" / "worker.log").read_text()
    assert "reader: nothing for" in log
    assert "in stuck" in log


def test_a_loop_that_rests_is_not_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    beat = Beat("reader", patience_s=5.0)
    assert beat.overdue_s() == 0  # it has not begun
    beat()
    now = 106.0
    assert beat.overdue_s() == 6
    beat.rest()
    assert beat.overdue_s() == 0


def test_an_onlooker_that_slept_accuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a machine was suspended: nothing was touched for an hour, and nothing could be."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    silence = Silence(tmp_path / "worker" / "pulse", hang_s=20.0, start_s=20.0)
    now = 3600.0
    assert not silence.is_too_long()
    for _ in range(3):
        now += 5.0
        assert not silence.is_too_long()
    now += 5.0
    assert silence.is_too_long()


def test_a_process_has_longer_until_its_first_sign_than_between_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path = tmp_path / "worker" / "pulse"
    silence = Silence(path, hang_s=4.0, start_s=30.0)
    for _ in range(5):
        now += 5.0
        assert not silence.is_too_long()
    os.utime(path, (1.0, 1.0))
    now += 5.0
    assert not silence.is_too_long()
    now += 5.0
    assert silence.is_too_long()


@pytest.mark.parametrize("there", [True, False])
def test_who_looks_on_follows_no_link_of_the_process_that_it_watches(home: Path, there: bool) -> None:
    """Else one that was taken over has files made, or touched, that it may not write itself."""
    path, other = pulse_file(home, "worker"), home / "other"
    path.parent.mkdir(parents=True)
    path.symlink_to(other)
    if there:
        other.touch()
        os.utime(other, (1, 1))
    Silence(path, 3.0, 3.0).is_too_long()
    assert other.exists() == there
    assert not there or other.stat().st_mtime == 1
