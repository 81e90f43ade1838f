"""A coordinator that waits for its task, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sovfed.server.runs import spare

WAITS = """
import sys
from pathlib import Path
from sovfed.server.runs import spare
spare.MODULES = ("json", "no_such_module")
line = spare.wait_for_task()
spare.write_output_to(Path(sys.argv[1]))
print("task", line, spare.is_spare(int(Path("/proc/self").resolve().name)), flush=True)
"""


def start(log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WAITS, str(log)], stdin=subprocess.PIPE)


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_waits_under_another_name_and_then_writes_to_the_log_of_its_run(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    keeper = spare.Spare(lambda: start(log))
    keeper.keep()
    process = keeper.take()
    assert process is not None and process.stdin is not None
    eventually(lambda: spare.is_spare(process.pid))
    process.stdin.write(b"of a run")
    process.stdin.close()
    assert process.wait(60) == 0
    assert log.read_text() == "task of a run False\n"
    assert log.stat().st_mode & 0o077 == 0


def test_it_ends_when_its_executor_is_gone(tmp_path: Path) -> None:
    process = start(tmp_path / "log")
    eventually(lambda: spare.is_spare(process.pid))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0
    assert (tmp_path / "log").read_text() == "task  False\n"


EXECUTOR = """
import os, subprocess, sys, time
reader, writer = os.pipe()
kept = os.dup(writer)
os.set_inheritable(kept, True)  # somebody else holds the pipe, and the spare one never sees its end
subprocess.Popen(["sleep", "60"], close_fds=False)
process = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdin=reader)
print(process.pid, flush=True)
time.sleep(60)
"""


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2)")
@pytest.mark.parametrize("busy", [False, True], ids=["waits", "imports"])
def test_one_that_waits_is_gone_with_an_executor_that_is_killed_whatever_it_does(tmp_path: Path, busy: bool) -> None:
    """Seen: one outlived its agency."""
    code = WAITS.replace('"json"', '"hangs"') if busy else WAITS
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-c", EXECUTOR, code, str(tmp_path / "log")], stdout=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3] / ".src")])},
    ) as executor:  # fmt: skip
        assert executor.stdout is not None
        pid = int(executor.stdout.readline())
        eventually(lambda: spare.is_spare(pid))
        executor.kill()
        eventually(lambda: not _alive(pid))
        os.killpg(executor.pid, signal.SIGKILL)


def test_one_that_has_died_is_not_given_a_task_and_another_is_started_only_later(tmp_path: Path) -> None:
    started = list[subprocess.Popen[bytes]]()

    def again() -> subprocess.Popen[bytes]:
        started.append(start(tmp_path / "log"))
        return started[-1]

    keeper = spare.Spare(again)
    keeper.keep()
    keeper.keep()
    assert len(started) == 1
    started[0].kill()
    started[0].wait()
    keeper.keep()
    assert keeper.take() is None
    keeper.keep()
    assert len(started) == 1, "not while a run starts"
    keeper.end()


def test_the_one_that_waits_ends_with_its_keeper(tmp_path: Path) -> None:
    started = list[subprocess.Popen[bytes]]()

    def once() -> subprocess.Popen[bytes]:
        started.append(start(tmp_path / "log"))
        return started[-1]

    keeper = spare.Spare(once)
    keeper.keep()
    keeper.end()
    assert started[0].returncode is not None
