"""One child process of a supervisor: started, watched, restarted with growing pauses, its output kept in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Final

from sovfed.federation.host.logs import Log
from sovfed.federation.host.pulse import HANG_S, Silence
from sovfed.federation.host.status import WAITS, ProcessStatus, State
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

BACK_OFF_S: Final = (0.5, 30.0)
HEALTHY_S: Final = 60.0  # after so long a time up, the next pause is the shortest again
FINAL_EXIT_CODES: Final = (2, 3)  # configuration, refused: a restart would change nothing
SILENT_S: Final = 10.0  # from when on the status says so
UP: Final = ("starting", "ready", "silent")
LAST_WORDS_S: Final = 5.0  # for what a process that is gone has written to be copied
REASON_LENGTH: Final = 400
PARENT: Final = "SOVFED_PARENT_PID"
_LINE_BYTES: Final = 65_536


@dataclasses.dataclass(frozen=True)
class Process:
    """One child: `ready` is asked until it is true; the next child starts only then. No `ready`: at once.

    Nobody waits for one that is `optional`, and the others go on without it. One that has stopped to touch the file
    `pulse` (`pulse.py`) for `hang_s` is ended and started again.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    ready: Callable[[], bool] | None = None
    ready_timeout_s: float = 60.0
    stop_timeout_s: float = 10.0
    optional: bool = False
    pulse: Path | None = None
    hang_s: float = HANG_S


def child_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` for a child that calls `die_with_parent`: it names this process as the parent."""
    return {**env, PARENT: str(os.getpid())}


class Child:
    """A process and its restarts. Only the supervisor's own thread may call it."""

    def __init__(
        self, process: Process, logs: Path, wake: Callable[[], None] = lambda: None, log_format: str = "text"
    ) -> None:
        self.process, self._home, self._wake = process, logs.parent, wake
        self.state: State = "waiting"
        self.restarts, self.since = 0, time.time()
        self.failures = 0  # ends that were no waiting
        self._said, self._reason = "", ""  # the last line of its output; that at its last end
        self.exit_code: int | None = None
        self.popen: subprocess.Popen[bytes] | None = None
        self._copier: threading.Thread | None = None
        self._silence: Silence | None = None
        self._pause_s, self._started, self._resume = BACK_OFF_S[0], 0.0, 0.0
        self.log = Log(logs / f"{process.name}.log", form=log_format)

    def status(self) -> ProcessStatus:
        pid = self.popen.pid if self.popen is not None and self.state in UP else None
        name, optional = self.process.name, self.process.optional
        reason = self._reason if self.state in ("starting", "backing off", "failed") else ""
        return ProcessStatus(name, self.state, pid, self.restarts, self.since, self.exit_code, optional, reason)

    def spawn(self) -> None:
        self._started = time.monotonic()
        process = self.process
        if process.pulse is not None:
            self._silence = Silence(process.pulse, process.hang_s, process.ready_timeout_s)
        try:
            self.popen = subprocess.Popen(
                list(self.process.argv), env=child_environment(self.process.env), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, cwd=self._home,
                umask=0o077,
            )  # fmt: skip
            copier = threading.Thread(target=self._copy_output, args=(self.popen,), daemon=True)
            copier.start()
        except (OSError, RuntimeError, MemoryError) as error:  # no process, thread or memory is to be had
            self.log.write(f"cannot start {self.process.argv[0]}: {str(error) or type(error).__name__}")
            self._end_unheard()
            self._back_off(None)
            return
        self._copier = copier
        self._become("ready" if self.process.ready is None else "starting")

    def _end_unheard(self) -> None:
        """End a process that was started and whose output nobody copies."""
        if self.popen is not None:
            self.signal(signal.SIGKILL)
            self.popen.wait()
            if self.popen.stdout is not None:
                self.popen.stdout.close()
            self.popen = None

    def step(self) -> None:
        """Notice an exit, a readiness, or the end of a pause."""
        self.log.tick()
        if self.state == "backing off":
            if time.monotonic() >= self._resume:
                self.restarts += 1
                self.spawn()
        elif self.popen is not None and self.state in UP:
            code = self.popen.poll()
            if code is not None:
                self.signal(signal.SIGKILL)  # whatever it left in its session
                self._hear_out()
                self.popen = None  # its number may be another's soon
                self.log.write(f"exited with code {code}")
                self._back_off(code)
            elif self.state == "starting" and self.process.ready is not None:
                if self.process.ready():
                    self._become("ready")
                elif time.monotonic() - self._started > self.process.ready_timeout_s:
                    self.log.write(f"not ready within {self.process.ready_timeout_s:g} s, killed")
                    self.signal(signal.SIGKILL)
            elif self._silence is not None:
                self._listen(self._silence)

    def _listen(self, silence: Silence) -> None:
        if silence.is_too_long():
            self.log.write(f"no sign of life for {silence.silent_s:.0f} s, killed")
            self.signal(signal.SIGKILL)
            self._silence = None
        elif (silence.silent_s > SILENT_S) != (self.state == "silent"):
            self._become("ready" if self.state == "silent" else "silent")

    def signal(self, number: signal.Signals) -> None:
        if self.popen is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, number)

    def stop(self, deadline: float) -> None:
        """Wait for the end until `deadline`, then kill the whole session."""
        if self.popen is not None:
            try:
                self.popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.log.write(f"did not stop within {self.process.stop_timeout_s:g} s, killed")
            self.signal(signal.SIGKILL)
            self.exit_code = self.popen.wait()
        if self._copier is not None:
            self._copier.join(1.0)
        if self.state != "failed":
            self._become("stopped")

    def _hear_out(self) -> None:
        """Wait until all that the process wrote is in its log: on a busy machine that is later than its end."""
        if self._copier is not None:
            self._copier.join(LAST_WORDS_S)

    def _become(self, state: State) -> None:
        self.state, self.since = state, time.time()

    def _back_off(self, code: int | None) -> None:
        self.exit_code, self._reason = code, self._said
        self.failures += code != WAITS
        if code in FINAL_EXIT_CODES and not self.process.optional:
            self._become("failed")
            return
        if time.monotonic() - self._started >= HEALTHY_S:
            self._pause_s = BACK_OFF_S[0]
        self._resume = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, BACK_OFF_S[1])
        self._become("backing off")

    def _copy_output(self, popen: subprocess.Popen[bytes]) -> None:
        if popen.stdout is None:
            return
        with popen.stdout as stream:
            at_line_start = True
            for line in iter(lambda: stream.readline(_LINE_BYTES), b""):
                text = line.decode(errors="replace").rstrip("\r\n")
                self._said = visible(text.strip())[:REASON_LENGTH] or self._said
                # The rest of a long line is no line of its own.
                self.log.write(text if at_line_start else f"    … {text}")
                at_line_start = line.endswith(b"\n")
        self._wake()  # it has ended, or is about to
