"""What a supervisor tells about its processes: `home/status.json`, valid while `home/status.lock` is held."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sovfed.federation.errors import ServiceError
from sovfed.federation.files import stamp, write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

State: TypeAlias = Literal["waiting", "starting", "ready", "silent", "backing off", "failed", "stopped"]
WAITS: Final = 75  # EX_TEMPFAIL: a process that may not run yet is started again, however long that takes
_FILE, _LOCK, _POLL_S = "status.json", "status.lock", 0.05


@dataclasses.dataclass(frozen=True)
class ProcessStatus:
    """What the status file says of one child; `since` is Unix time in seconds."""

    name: str
    state: State
    pid: int | None
    restarts: int
    since: float
    exit_code: int | None = None
    optional: bool = False
    reason: str = ""  # its last words, until it is ready again


@dataclasses.dataclass(frozen=True)
class Status:
    """The supervisor's process id and its children."""

    pid: int
    since: float
    processes: tuple[ProcessStatus, ...]

    @property
    def ready(self) -> bool:
        """Whether every process is, but for optional ones."""
        return all(process.state == "ready" or process.optional for process in self.processes)

    @property
    def waits(self) -> bool:
        """Whether a process waits for what comes by itself."""
        return any(process.exit_code == WAITS and process.reason for process in self.processes)

    @property
    def complaints(self) -> list[str]:
        """What the processes that do not run said last, a line each."""
        return [f"{process.name} does not run: {process.reason}" for process in self.processes if process.reason]


def write_status(home: Path, status: Status) -> None:
    """Replace the status file in one step."""
    write_atomic(home / _FILE, json.dumps(dataclasses.asdict(status)).encode(), 0o600, durable=False)


def status_stamp(home: Path) -> tuple[int, int, int] | None:
    """What changes when somebody else writes the status file, empties it or takes it away."""
    return stamp(home / _FILE)


def read_status(home: Path) -> Status | None:
    """The status of the supervisor of `home`, None when none is running.

    It may be of another version than this one, as after an upgrade: what is not known here is left out.
    """
    if not home.is_dir() or not is_locked(home / _LOCK):
        return None
    try:
        values = json.loads((home / _FILE).read_text(encoding="utf-8"))
        return Status(values["pid"], values["since"], tuple(map(_process, values["processes"])))
    except (OSError, ValueError, LookupError, TypeError):
        return None  # it has the lock and is about to write


def _process(entry: dict[str, Any]) -> ProcessStatus:
    known = (field.name for field in dataclasses.fields(ProcessStatus))
    return ProcessStatus(**{name: entry[name] for name in known if name in entry})


def stop_supervisor(home: Path, timeout_s: float = 30.0) -> bool:
    """Ask the supervisor of `home` to stop and wait for it; False when none was running.

    Raises ServiceError if it is still there after `timeout_s`, or has not said in that time which process it is.
    """
    deadline = time.monotonic() + timeout_s
    while (status := read_status(home)) is None:
        if not home.is_dir() or not is_locked(home / _LOCK):
            return False
        if time.monotonic() > deadline:
            raise ServiceError(f"{home}: a supervisor runs, but {_FILE} does not say which process; `lslocks` does")
        time.sleep(_POLL_S)
    os.kill(status.pid, signal.SIGTERM)
    while is_locked(home / _LOCK):
        if time.monotonic() > deadline:
            raise ServiceError(f"{home}: the supervisor (pid {status.pid}) has not stopped within {timeout_s:g} s")
        time.sleep(_POLL_S)
    return True


@contextmanager
def supervising(home: Path, patience_s: float = 2.0) -> Iterator[None]:
    """Hold the lock of `home` and remove the status file at the end.

    Raises ServiceError if another supervisor has it; a reader, which holds it for an instant, is waited for.
    """
    descriptor = os.open(home / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_s
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise ServiceError(f"{home} is in use: its processes are running already")
            time.sleep(_POLL_S)
        with suppress(OSError):  # of one that was killed: its process ids are strangers' by now
            (home / _FILE).unlink()
        try:
            yield
        finally:
            (home / _FILE).unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock (flock) on the file `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH)  # shared: readers do not take each other for its holder
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
