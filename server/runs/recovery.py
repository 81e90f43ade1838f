"""Runs whose coordinator died or was told to end are taken up again, from their checkpoints, without anybody's word.

What is due is read from the runs' folders, so that it makes no difference whether a coordinator, the executor, the
supervisor or the machine came down. A run is tried again after pauses that grow, and given up when for a day no round
came of it; whoever stopped a run by hand (`sovfed run stop`) has ended it.
"""

from __future__ import annotations

import json
import logging
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.files import write_private
from sovfed.federation.host.pulse import HANG_S, Silence
from sovfed.server.runs.coordinators import COORDINATOR, coordinator_of, send
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.folders import (
    ACTIVE,
    INTERRUPTED,
    PULSE,
    STARTING,
    STATE,
    STOPPING,
    is_held,
    read_run,
    read_state,
    read_summary,
    run_folder,
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
DEATHS: Final = 5  # of coordinators that cannot begin, say because a library is broken: no time mends that
TRIED: Final = "recovery.json"
REASON_LENGTH: Final = 400


@dataclass(frozen=True)
class Tried:
    """How often a run was taken up since round `round`, and when for the last time (Unix time).

    `died` is how many of its coordinators have died since then before they had begun; `why` says what has kept the last
    try from beginning.
    """

    round: int = 0
    count: int = 0
    at: float = 0.0
    died: int = 0
    why: str = ""

    @property
    def next_at(self) -> float:
        """When it is tried again."""
        return self.at + PAUSES_S[min(self.count, len(PAUSES_S) - 1)]


class Recovery:
    """Takes up what is due in `home`; the executor asks for it again and again."""

    def __init__(self, home: Path, control: ControlClient, hang_s: float = HANG_S, module: str = COORDINATOR) -> None:
        """A coordinator runs `module`, and hangs when it has shown no sign of life for `hang_s`."""
        self._home, self._control, self._hang_s, self._module = home, control, hang_s, module
        self._silences: dict[str, tuple[int, Silence]] = {}  # by run: its coordinator, and for how long it is silent
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
                self._note_why(path.parent, str(error) or type(error).__name__)

    def _note_why(self, folder: Path, why: str) -> None:
        """Have `run show` tell it: nobody else than the executor knows."""
        tried = last_try(folder)
        if tried.count and tried.why != why[:REASON_LENGTH]:
            with suppress(OSError):
                self._write_tried(folder, replace(tried, why=why[:REASON_LENGTH]))

    def note_death(self, flower_run_id: int, code: int) -> None:
        """A coordinator for Flower's run died with `code`; where it had not begun, the run's state says so at once.

        Without this it would be said to start for as long as Flower waits for it.
        """
        for path in (self._home / "runs").glob(f"*/{STATE}"):
            try:
                self._note_death(path.parent, flower_run_id, f"signal {-code}" if code < 0 else f"exit code {code}")
            except (SovfedError, OSError, ValueError, LookupError) as error:  # as in `step`
                log.warning("run %s: it is not written down how it ended: %s", path.parent.name, error)

    def _note_death(self, folder: Path, flower_run_id: int, how: str) -> None:
        state, tried = read_state(self._home, folder.name), last_try(folder)
        if (state["flower_run_id"], state["status"]) != (flower_run_id, STARTING) or is_held(folder):
            return
        self._write_tried(folder, replace(tried, died=tried.died + 1))
        why = f"its coordinator died before it began ({how}); `sovfed run logs {folder.name}` may say why"
        write_state(folder, state, INTERRUPTED, why)

    def _take_up(self, folder: Path) -> bool:
        """Take up the run in `folder` if it is due. False if it has ended."""
        state = read_state(self._home, folder.name)
        held = is_held(folder)
        if held and state["status"] in (*ACTIVE, STOPPING):
            self._listen(folder)
        elif not held and state["status"] in ACTIVE:
            self._silences.pop(folder.name, None)
            self._when_due(folder, state)
        else:
            return False
        return True

    def _listen(self, folder: Path) -> None:
        """Kill the run's coordinator if it hangs; it is taken up with the next look, as if it had died."""
        pid = coordinator_of(folder, self._module)
        if not pid:  # a person's command holds the folder for a moment
            return
        heard = self._silences.get(folder.name)
        if heard is None or heard[0] != pid:
            silence = Silence(folder / PULSE, self._hang_s, self._hang_s)  # it touches it as it writes its state
            heard = self._silences[folder.name] = pid, silence
        if heard[1].is_too_long():
            log.warning("run %s: no sign of life of its coordinator for %.0f s, killed", folder.name, heard[1].silent_s)
            send(pid, signal.SIGKILL)

    def _when_due(self, folder: Path, state: dict[str, Any]) -> None:
        tried = last_try(folder)
        if state["status"] == STARTING and not self._control.is_over(state["flower_run_id"]):
            return  # Flower has its task and will hand it out
        if read_summary(self._home, folder.name) is not None:  # it died with all its work done
            write_state(folder, state, "finished")
            return
        rounds = read_rounds(folder)
        done = rounds[-1]["round"] if rounds else 0
        if done > tried.round:  # that try was not in vain
            tried = Tried(done)
        if tried.died >= DEATHS:
            write_state(folder, state, "failed", f"{tried.died} times: {state['reason']}")
            return
        if tried.at <= time.time() < tried.next_at:
            return
        if tried.count >= TRIES:
            write_state(folder, state, "failed", f"{TRIES} times taken up without a new round: {state['reason']}")
            return
        count = tried.count + 1
        self._write_tried(folder, replace(tried, round=done, count=count, at=time.time(), why=""))
        log.info("run %s: taken up after round %d, try %d", folder.name, done, count)
        config = stored_config(self._home, folder.name)
        start_run(self._control, self._home, folder.name, config, resume=True, by_itself=True)

    def _write_tried(self, folder: Path, tried: Tried) -> None:
        write_private(folder / TRIED, json.dumps(asdict(tried)).encode())


def end_coordinators(home: Path, module: str, timeout_s: float) -> None:
    """End the coordinators of `home` that an executor before this one has started: SIGTERM, SIGKILL after `timeout_s`.

    A coordinator runs `module`.
    """
    folders = [path.parent for path in (home / "runs").glob(f"*/{STATE}")]
    running = [folder for folder in folders if coordinator_of(folder, module)]
    for folder in running:
        send(coordinator_of(folder, module), signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    for folder in running:
        while (pid := coordinator_of(folder, module)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if pid:
            log.warning("run %s: coordinator killed", folder.name)
            send(pid, signal.SIGKILL)


def resume_run(control: ControlClient, home: Path, name: str) -> int:
    """Go on with a run that failed or was stopped, because a person asks. Raises ConfigError if it runs or cannot."""
    if read_run(home, name, control)["status"] == "running":
        raise ConfigError(f"run '{name}' is still running; `sovfed run stop {name}` ends it")
    begin_anew(run_folder(home, name))
    return start_run(control, home, name, stored_config(home, name), resume=True)


def begin_anew(folder: Path) -> None:
    """Forget earlier tries: a person has looked at the run."""
    (folder / TRIED).unlink(missing_ok=True)


def last_try(folder: Path) -> Tried:
    """What is known of earlier tries to take up the run in `folder`."""
    try:
        return Tried(**json.loads((folder / TRIED).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):  # none yet, or it was damaged: written anew by this try
        return Tried()
