"""A coordinator that has started and waits for its task: what it imports takes seconds, which no run need wait for.

It is the process that a coordinator is, under another name until it has its task. It waits for it on standard input.
Until it has one it ends with its executor, however that ends: the kernel kills it, whatever it imports at that moment;
where the executor was gone before that was said, standard input is at its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

QUIET_S: Final = 15.0  # after a run has started, the processor is left to it
AGAIN_S: Final = 60.0  # before one that has ended by itself is followed by another
NAME: Final = "sovfed-spare"  # as the kernel tells it; 15 characters at most
END_WITH_PARENT, NAME_THIS = 1, 15  # of prctl(2)
MODULES: Final = ("flwr.superlink.grid", "flwr.supercore.interceptors", "flwr.supercore.runtime", "torch", "mlflow")


class Spare:
    """The one that waits, if there is one; `start` makes it."""

    def __init__(self, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._start, self._due = start, 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        """See that there is one, if it is time."""
        if self._process is not None and self._process.poll() is not None:
            self.end()
            self._due = time.monotonic() + AGAIN_S
        if self._process is None and time.monotonic() >= self._due:
            self._due = time.monotonic() + AGAIN_S
            with contextlib.suppress(OSError):  # no memory, no disk: runs start without it
                self._process = self._start()

    def take(self) -> subprocess.Popen[bytes] | None:
        """The one that waits, which is the caller's from now on; None if there is none."""
        if self._process is not None and self._process.poll() is not None:
            self.end()
        process, self._process = self._process, None
        self._due = time.monotonic() + QUIET_S
        return process

    def end(self) -> None:
        """End the one that waits."""
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.kill()


def wait_for_task(prepare: Callable[[], object] = lambda: None) -> str:
    """Import what a coordinator needs and `prepare`, as long as its task is not here; the line that it is, or "" if
    none comes.
    """
    from importlib import import_module, invalidate_caches

    _prctl(END_WITH_PARENT, signal.SIGKILL)
    _call_this_process(NAME)
    for module in MODULES:
        if select.select([sys.stdin], [], [], 0)[0]:  # it is here already
            break
        with contextlib.suppress(ImportError):  # the run that needs it says so
            import_module(module)
    else:
        with contextlib.suppress(Exception):  # the run that needs it says so
            prepare()
    line = sys.stdin.readline()
    if line:  # a coordinator outlives its executor
        _prctl(END_WITH_PARENT, 0)
    invalidate_caches()  # what was installed meanwhile is there
    _call_this_process(Path(sys.executable).name)
    return line


def is_spare(pid: int) -> bool:
    """Whether process `pid` is a coordinator that has no task yet."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == NAME
    except OSError:
        return False


def write_output_to(path: Path) -> None:
    """Have what this process says from now on stand in the file at `path`."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for output in (sys.stdout, sys.stderr):
        output.flush()
        os.dup2(log, output.fileno())
    os.close(log)


def _call_this_process(name: str) -> None:
    _prctl(NAME_THIS, name.encode()[:15])


def _prctl(what: int, value: int | bytes) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(what, value, 0, 0, 0)
