"""The process of a run's coordinator, as the run's state names it; executors come and go, it goes on."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.host.status import is_locked

if TYPE_CHECKING:
    import signal

RUN_STATE: Final = "run.json"
LOCK: Final = "lock"
COORDINATOR: Final = "sovfed.server.runs.app"
TOLD: Final = 4  # exit code of one that has failed and said so; any other but 0 is that of one that died


def coordinator_of(folder: Path, module: str = COORDINATOR) -> int:
    """The process that has the run in `folder` in hand; 0 if there is none.

    It runs `module`: a process of another name has only got the number of one that is gone.
    """
    try:
        pid = int(json.loads((folder / RUN_STATE).read_bytes())["pid"])
    except (OSError, ValueError, LookupError, TypeError):  # damaged: the others are ended all the same
        return 0
    return pid if is_locked(folder / LOCK) and module in _words(pid) else 0


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to process `pid`; nothing happens if it is gone, or 0."""
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _words(pid: int) -> list[str]:
    """The command line of a process; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []
