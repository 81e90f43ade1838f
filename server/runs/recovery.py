"""Runs whose coordinator died or was told to end are taken up again, from their checkpoints, without anybody's word.

What is due is read from the runs' folders, so that it makes no difference whether a coordinator, the executor, the
supervisor or the machine came down. A run is tried again after pauses that grow, and given up when for a day no round
came of it; whoever stopped a run by hand (`sovfed run stop`) has ended it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import SovfedError
from sovfed.federation.files import write_private
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.folders import (
    ACTIVE,
    STARTING,
    STATE,
    is_held,
    read_state,
    read_summary,
    start_run,
    stored_config,
    write_state,
)

if TYPE_CHECKING:
    from typing import Any

    from sovfed.server.runs.control import ControlClient

log = logging.getLogger("sovfed.executor")
LOOK_S: Final = 2.0  # between two looks at the folders
PAUSES_S: Final = (0.0, 5.0, 30.0, 120.0, 600.0)  # before a try, by those before it without a new round
TRIES: Final = 150  # a day of the longest pause
TRIED: Final = "recovery.json"


@dataclass(frozen=True)
class Tried:
    """How often a run was taken up since round `round`, and when for the last time (Unix time)."""

    round: int = 0
    count: int = 0
    at: float = 0.0

    @property
    def next_at(self) -> float:
        """When it is tried again."""
        return self.at + PAUSES_S[min(self.count, len(PAUSES_S) - 1)]


class Recovery:
    """Takes up what is due in `home`; the executor asks for it again and again."""

    def __init__(self, home: Path, control: ControlClient) -> None:
        self._home, self._control = home, control
        self._looked, self._ended = 0.0, dict[str, int]()  # runs that have ended, and when their state was written

    def step(self) -> None:
        """Take up the runs that are due, if it is time to look. One that cannot be is logged, and holds up no other."""
        if time.monotonic() - self._looked < LOOK_S:
            return
        self._looked = time.monotonic()
        for path in sorted((self._home / "runs").glob(f"*/{STATE}")):
            try:
                written = path.stat().st_mtime_ns
                if self._ended.get(path.parent.name) != written and not self._take_up(path.parent):
                    self._ended[path.parent.name] = written
            except (SovfedError, OSError, ValueError, LookupError) as error:  # a damaged state, too
                log.warning("run %s cannot be taken up yet: %s", path.parent.name, error)

    def _take_up(self, folder: Path) -> bool:
        """Take up the run in `folder` if it is due. False if it has ended."""
        state = read_state(self._home, folder.name)
        if state["status"] not in ACTIVE:
            return False
        if not is_held(folder):  # or its coordinator lives
            self._when_due(folder, state)
        return True

    def _when_due(self, folder: Path, state: dict[str, Any]) -> None:
        tried = last_try(folder)
        if state["status"] == STARTING and not self._control.get_run(state["flower_run_id"]).finished:
            return  # Flower has its task and will hand it out
        if read_summary(self._home, folder.name) is not None:  # it died with all its work done
            write_state(folder, state, "finished")
            return
        if tried.at <= time.time() < tried.next_at:
            return
        if tried.count >= TRIES:
            write_state(folder, state, "failed", f"{TRIES} times taken up without a new round: {state['reason']}")
            return
        rounds = read_rounds(folder)
        done = rounds[-1]["round"] if rounds else 0
        count = tried.count + 1 if done <= tried.round else 1
        write_private(folder / TRIED, json.dumps(asdict(Tried(done, count, time.time()))).encode())
        log.info("run %s: taken up after round %d, try %d", folder.name, done, count)
        config = stored_config(self._home, folder.name)
        start_run(self._control, self._home, folder.name, config, resume=True, by_itself=True)


def end_coordinators(home: Path, module: str, timeout_s: float) -> None:
    """End the coordinators of `home` that an executor before this one has started: SIGTERM, SIGKILL after `timeout_s`.

    A coordinator runs `module`; a process of another name has only got the number of one that is gone.
    """
    folders = [path.parent for path in (home / "runs").glob(f"*/{STATE}") if is_held(path.parent)]
    pids = {folder: _pid(home, folder.name) for folder in folders}
    running = {folder: pid for folder, pid in pids.items() if module in _words(pid)}
    for pid in running.values():
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    for folder, pid in running.items():
        while is_held(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        if is_held(folder) and module in _words(pid):
            log.warning("run %s: coordinator killed", folder.name)
            _signal(pid, signal.SIGKILL)


def _pid(home: Path, name: str) -> int:
    """The process that the run's state names; 0 if it names none."""
    try:
        return int(read_state(home, name)["pid"])
    except (SovfedError, OSError, ValueError, LookupError, TypeError):  # damaged: the others are ended all the same
        return 0


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _words(pid: int) -> list[str]:
    """The command line of a process; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return []


def begin_anew(folder: Path) -> None:
    """Forget earlier tries: a person has looked at the run."""
    (folder / TRIED).unlink(missing_ok=True)


def last_try(folder: Path) -> Tried:
    """What is known of earlier tries to take up the run in `folder`."""
    try:
        return Tried(**json.loads((folder / TRIED).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # none yet, or it was damaged: written anew by this try
        return Tried()
