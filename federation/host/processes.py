"""A small supervisor: named child processes, started in order, kept up, stopped together.

    supervisor = Supervisor(home, [Process("trainer", argv, env, ready=listening(home / "trainer.sock")), …])
    supervisor.run()                        # blocks until SIGTERM, SIGINT or SIGHUP
    supervisor.start(); …; supervisor.stop()   # embedded, as in the demo

Each child has its own session (a Ctrl-C in the terminal reaches only the supervisor, and a stop reaches
grandchildren) and its own log `home/logs/NAME.log` with a UTC time on every line. It is restarted after a pause that
doubles from 0.5 s to 30 s and falls back after a minute of health. Exit codes 2 (configuration) and 3 (refused) are
final and stop the rest too; by `WAITS` a child says that it may not run before something comes, as a fresh revocation
list does by itself. One supervisor a home (`federation/host/status.py`).
A child's main calls `die_with_parent()` first, so that even `kill -9` of the supervisor leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.addresses import socket_path
from sovfed.federation.errors import (
    ConfigError,
    IdentityError,
    NotReadNowError,
    NotValidNowError,
    PolicyError,
    PrivacyError,
    ServiceError,
    SovfedError,
)
from sovfed.federation.host.child import PARENT, Child, Process, child_environment
from sovfed.federation.host.notify import Notifier
from sovfed.federation.host.status import (
    WAITS,
    ProcessStatus,
    Status,
    read_status,
    status_stamp,
    stop_supervisor,
    supervising,
    write_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = [
    "Process", "ProcessStatus", "Status", "Supervisor", "child_environment", "die_with_parent", "exit_code",
    "listening", "read_status", "start_detached", "stop_supervisor",
]  # fmt: skip

START_ATTEMPTS: Final = 4
_POLL_S: Final = 0.05
CALM_S: Final = 1.0  # between two looks while all are ready; the end of one, and of its output, is noticed at once
BRISK_S: Final = 2.0  # after which all is calm again


def die_with_parent() -> None:
    """Have the kernel kill this process when its supervisor dies (Linux only). First line of every child's main.

    Exits at once if the supervisor has died already. From here on no core is written: it would hold keys.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = os.environ.pop(PARENT, None)  # a child's own children have another parent
    if sys.platform != "linux" or parent is None:
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        os._exit(1)


def exit_code(error: SovfedError) -> int:
    """What a child's main exits with for `error`: 2 and 3 are final, 1 is tried again, and `WAITS` for ever."""
    if isinstance(error, ConfigError):
        return 2
    if isinstance(error, NotValidNowError | NotReadNowError):
        return WAITS
    return 3 if isinstance(error, IdentityError | PolicyError | PrivacyError) else 1


def listening(target: Path | tuple[str, int]) -> Callable[[], bool]:
    """A readiness check: something accepts connections on the Unix socket or at (host, port).

    Raises ConfigError for a path that no Unix socket can have.
    """
    address = str(socket_path(target)) if isinstance(target, Path) else target
    family = socket.AF_UNIX if isinstance(target, Path) else socket.AF_INET

    def check() -> bool:
        with socket.socket(family) as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(address) == 0

    return check


def start_detached(argv: Sequence[str], env: Mapping[str, str], home: Path) -> list[str]:
    """Run `argv`, which supervises `home`, from there and in a session of its own; returns once all is ready.

    Or once a process waits for what comes by itself: then what it waits for, a line each. The output goes to
    `home/logs/supervisor.log`. Raises ServiceError with the end of that if it gives up.
    """
    log = home / "logs" / "supervisor.log"
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
        started = subprocess.Popen(
            list(argv), env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            cwd=home,
        )  # fmt: skip
    try:
        while started.poll() is None:
            status = read_status(home)
            if status is not None and (status.ready or status.waits):
                started.returncode = 0  # it goes on without us, and nobody will wait for it
                return status.complaints
            time.sleep(2 * _POLL_S)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"it goes on starting in the background (process {started.pid}); see {log}") from None
    raise ServiceError(log.read_text(encoding="utf-8", errors="replace").strip().removeprefix("error: "))


class Supervisor:
    """Starts `processes` in order, keeps them up, writes `home/status.json`. `home` must be 0700."""

    def __init__(
        self, home: Path, processes: Sequence[Process], log_format: str = "text",
        beside: AbstractContextManager[object] | None = None,
    ) -> None:  # fmt: skip
        """`beside` is entered while the processes run."""
        if home.stat().st_mode & 0o077:
            raise ServiceError(f"{home}: mode {home.stat().st_mode & 0o777:04o}, expected 0700")
        self._home, self._stopping = home, threading.Event()
        (home / "logs").mkdir(mode=0o700, exist_ok=True)
        self._wake, self._brisk_until = threading.Event(), 0.0
        self._children = [Child(process, home / "logs", self._wake.set, log_format) for process in processes]
        self._beside = beside or nullcontext()
        self._thread = threading.Thread(target=self._main, name="supervisor", daemon=True)
        self._since, self._settled, self._problem = time.time(), threading.Event(), ""
        self._written: Status | None = None
        self._stamp: tuple[int, int, int] | None = None
        self._unwritten = False  # the last try to write the status failed
        self._notifier = Notifier()

    def start(self) -> None:
        """Start everything and return when all is ready.

        Raises ServiceError, with the last lines of the log, if one child fails for good or is not ready in its time;
        all are stopped then. Children are made in a thread of the supervisor's own, since a child's life is tied to
        the thread that made it.
        """
        self._thread.start()
        self._settled.wait()
        if self._problem:
            self.stop()
            raise ServiceError(self._problem)

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to what is left after its time. Returns when all are gone."""
        self._ask_to_stop()
        if self._thread.is_alive():
            self._thread.join()

    def run(
        self, on_ready: Callable[[], None] = lambda: None, on_change: Callable[[Status], None] = lambda _: None
    ) -> None:
        """Start all, then block until SIGTERM, SIGINT or SIGHUP, or until a child fails for good; stop all.

        Both functions are called in this thread: `on_change` with every new status, `on_ready` once.
        Raises ServiceError as `start` does, and if a child failed for good.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: self._ask_to_stop())
        self._thread.start()
        announced, shown, complaints = False, None, list[str]()
        while self._thread.is_alive():
            status = self.status()
            if status != shown:
                on_change(status)
                shown = status
            if (now := status.complaints) and now != complaints:
                complaints = now
                with contextlib.suppress(OSError):
                    sys.stderr.write("".join(f"{line}\n" for line in now))
            if self._settled.is_set() and not announced and not self._problem:
                on_ready()
                announced = True
            self._thread.join(CALM_S if announced else 0.1)
        if self._problem:
            raise ServiceError(self._problem)

    def status(self) -> Status:
        return Status(os.getpid(), self._since, tuple(child.status() for child in self._children))

    def _main(self) -> None:
        try:
            with supervising(self._home), self._beside:
                try:
                    self._start_all()
                    if not self._stopping.is_set():
                        self._publish()
                        self._settled.set()
                        self._notifier.ready()
                    while not self._stopping.is_set() and not self._problem:
                        self._step()
                finally:
                    self._notifier.stopping()
                    self._stop_all()
        except (ServiceError, OSError) as error:
            self._problem = str(error)
        except Exception as error:  # a fault of ours: whoever started this is told, and no end looks like one asked for
            traceback.print_exc()
            self._problem = f"the supervisor failed: {type(error).__name__}: {error}"
        finally:
            for child in self._children:
                child.log.close()
            self._settled.set()

    def _start_all(self) -> None:
        for child in self._children:
            child.spawn()
            deadline = time.monotonic() + child.process.ready_timeout_s
            while not (child.state == "ready" or child.process.optional or self._stopping.is_set() or self._problem):
                if child.exit_code == WAITS:  # for what comes by itself, and it says for what
                    deadline = time.monotonic() + child.process.ready_timeout_s
                elif child.failures >= START_ATTEMPTS:
                    self._give_up(child, f"ended {START_ATTEMPTS} times before it was ready")
                elif time.monotonic() > deadline:
                    self._give_up(child, f"was not ready within {child.process.ready_timeout_s:g} s")
                self._step()
            if self._stopping.is_set() or self._problem:
                return

    def _step(self) -> None:
        for child in self._children:
            self._look_after(child)
            if child.state == "failed" and not self._problem:
                self._give_up(child, f"refused to run (exit code {child.exit_code})")
        self._publish()
        self._notifier.alive()
        self._pause()

    def _look_after(self, child: Child) -> None:
        """Have it take its step. One that the machine has no descriptor, thread or memory for is tried again."""
        try:
            child.step()
        except (OSError, RuntimeError, MemoryError) as error:
            child.log.write(f"cannot be looked after now: {str(error) or type(error).__name__}")

    def _pause(self) -> None:
        """Until it is time to look again: soon after anything has happened, and while a child is not ready."""
        calm = time.monotonic() > self._brisk_until and all(child.state == "ready" for child in self._children)
        if self._wake.wait(CALM_S if calm else _POLL_S):
            self._wake.clear()
            self._brisk_until = time.monotonic() + BRISK_S
            self._stopping.wait(_POLL_S)

    def _ask_to_stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    def _give_up(self, child: Child, why: str) -> None:
        self._problem = f"{child.process.name} {why}; end of {child.log.path}:\n{child.log.tail()}"

    def _publish(self) -> None:
        status = self.status()
        if status == self._written and status_stamp(self._home) == self._stamp:
            return
        try:
            write_status(self._home, status)
        except OSError as error:  # a full disk: what runs goes on, and each step tries again
            if not self._unwritten:
                with contextlib.suppress(OSError):  # its own log may lie on that disk
                    sys.stderr.write(f"warning: {self._home}: the status cannot be written: {error.strerror}\n")
            self._unwritten = True
        else:
            self._written, self._stamp, self._unwritten = status, status_stamp(self._home), False

    def _stop_all(self) -> None:
        for child in reversed(self._children):
            child.signal(signal.SIGTERM)
        now = time.monotonic()
        for child in reversed(self._children):
            child.stop(now + child.process.stop_timeout_s)
