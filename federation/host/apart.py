"""Code of others, run in a process of its own and ended with a reason when it takes, prints or writes too much.

The process seals itself (`sandbox.seal`); these bounds are held from outside, by whoever waits for it. It starts in a
session of its own, which ends with it, and dies with its parent.
"""

from __future__ import annotations

import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.host.child import child_environment
from sovfed.federation.host.quiet import python_command, quiet_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

POLL_S: Final = 0.2
CHUNK: Final = 1 << 16
KEPT: Final = 1 << 16  # bytes of the last complaints
FILES: Final = 20_000
LEAST_FREE: Final = 256 << 20  # bytes of the disk that the process may not take: a file without a name counts too
MIB: Final = 1 << 20


@dataclass(frozen=True)
class Bounds:
    """What a process may take; None: as long as it likes. `complained` is what goes to standard error."""

    seconds: float | None = None
    printed: int = 256 * MIB
    complained: int = 64 * MIB
    scratch: int = 2048 * MIB


@dataclass(frozen=True)
class Completed:
    """How the process ended, all that it printed, and the last of what it complained."""

    returncode: int
    printed: bytes
    complained: bytes


def run_apart(
    module: str, request: bytes, scratch: Path, bounds: Bounds, environment: Mapping[str, str] | None = None
) -> Completed:
    """Run `module` as a program with `request` on its standard input and `scratch` as its only folder.

    Raises ConfigError, once everything of it has ended, if it goes beyond `bounds`.
    """
    variables = {**quiet_environment(), **(environment or {}), "HOME": str(scratch), "TMPDIR": str(scratch)}
    with tempfile.TemporaryFile() as asked:
        asked.write(request)
        asked.seek(0)
        process = subprocess.Popen(
            python_command(module), stdin=asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=scratch,
            env=child_environment(variables), start_new_session=True,
        )  # fmt: skip
    if sys.platform == "linux":
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (bounds.scratch, bounds.scratch))
    with process:
        try:
            return _Watched(process, scratch, bounds).wait()
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


class _Watched:
    """A process that runs, and what came of it so far."""

    def __init__(self, process: subprocess.Popen[bytes], scratch: Path, bounds: Bounds) -> None:
        self._process, self._scratch, self._bounds = process, scratch, bounds
        self._started, self._looked = time.monotonic(), 0.0
        self._printed, self._complained, self._complaints = bytearray(), bytearray(), 0

    def wait(self) -> Completed:
        with selectors.DefaultSelector() as selector:
            for stream in filter(None, (self._process.stdout, self._process.stderr)):
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                events = selector.select(POLL_S)
                for key, _ in events:
                    if chunk := os.read(key.fd, CHUNK):
                        self._take(chunk, printed=key.fileobj is self._process.stdout)
                    else:
                        selector.unregister(key.fileobj)
                if not events and self._process.poll() is not None:
                    break  # what it has started keeps its pipes open
                self._look()
        while self._process.poll() is None:
            time.sleep(POLL_S)
            self._look()
        return Completed(self._process.returncode, bytes(self._printed), bytes(self._complained))

    def _take(self, chunk: bytes, *, printed: bool) -> None:
        if printed:
            self._printed += chunk
            if len(self._printed) > self._bounds.printed:
                raise _ended(f"printed more than {self._bounds.printed // MIB} MiB")
            return
        self._complaints += len(chunk)
        self._complained = (self._complained + chunk)[-KEPT:]
        if self._complaints > self._bounds.complained:
            raise _ended(f"printed more than {self._bounds.complained // MIB} MiB")

    def _look(self) -> None:
        """Raise ConfigError if time or disk are used up; looks a few times a second."""
        now = time.monotonic()
        if now - self._looked < POLL_S:
            return
        self._looked = now
        if self._bounds.seconds is not None and now - self._started > self._bounds.seconds:
            raise _ended(f"took more than {self._bounds.seconds:g} s")
        if _taken(self._scratch) > self._bounds.scratch:
            raise _ended(f"wrote more than {self._bounds.scratch // MIB} MiB or {FILES} files to its folder")
        if shutil.disk_usage(self._scratch).free < LEAST_FREE:
            raise _ended(f"left the disk of {self._scratch.parent} less than {LEAST_FREE // MIB} MiB")


def _ended(what: str) -> ConfigError:
    return ConfigError(f"the task's code {what}, and was ended")


def _taken(folder: Path) -> float:
    """Bytes on disk in `folder`; infinite where it has too many files to count."""
    total, count, waiting = 0, 0, [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:  # it may be gone by now
            for entry in entries:
                count += 1
                if count > FILES:
                    return float("inf")
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
    return total
