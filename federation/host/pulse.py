"""A process that goes on touches a file; who looks after it starts it again once that has stopped.

    pulse = Pulse(pulse_file(home, "gateway")).start()   # in the process, as soon as it is sealed
    beat = pulse.watch("executor", patience_s=120.0)     # a loop that must come round
    while …: beat(); …                                   # in that loop, each time
    beat.rest()                                          # it waits for something that may take for ever

The file is touched every two seconds by a thread of its own, but only while no watched loop is overdue: one that is
stopped (SIGSTOP, swap, a dead disk) and one whose loop hangs look alike. A supervisor watches the file where its
`Process` names one (`pulse=`), and ends and restarts what is silent for `hang_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final, Self

log = logging.getLogger(__name__)
BEAT_S: Final = 2.0
HANG_S: Final = 60.0  # longest silence, unless told otherwise
LOOP_S: Final = 60.0  # an event loop that does not come round for so long is hung
LOOK_S: Final = 2.0  # between two looks at a file
DOZE_S: Final = 5.0  # a longer pause between two looks counts as this: the onlooker itself was stopped


def pulse_file(home: Path, name: str) -> Path:
    """The file that process `name` of `home` touches; its folder is that process's own."""
    return home / "run" / name / "pulse"


class Beat:
    """One watched loop: called each time it comes round."""

    def __init__(self, loop: str, patience_s: float) -> None:
        self.loop, self._patience_s = loop, patience_s
        self._at: float | None = None

    def __call__(self) -> None:
        self._at = time.monotonic()

    def rest(self) -> None:
        """Nothing is expected of the loop until it beats again; so it is before the first time."""
        self._at = None

    def overdue_s(self) -> float:
        """For how many seconds the loop has been silent, if that is longer than its patience; else 0."""
        at = self._at
        silent = 0.0 if at is None else time.monotonic() - at
        return silent if silent > self._patience_s else 0.0


class Pulse:
    """Touches `path` every `BEAT_S` while no watched loop is overdue."""

    def __init__(self, path: Path) -> None:
        self._path, self._beats, self._told = path, list[Beat](), False
        self._thread = threading.Thread(target=self._go_on, name="pulse", daemon=True)

    def start(self) -> Self:
        """Touch it from now on, until this process ends."""
        self._thread.start()
        return self

    def watch(self, loop: str, patience_s: float) -> Beat:
        """What `loop` is to call at least every `patience_s`, from the first call on."""
        beat = Beat(loop, patience_s)
        self._beats.append(beat)
        return beat

    def _go_on(self) -> None:
        while True:
            late = next((beat for beat in self._beats if beat.overdue_s()), None)
            if late is None:
                self._told = False
                with contextlib.suppress(OSError):  # a file system that takes nothing: the onlooker sees that too
                    touch(self._path)
            elif not self._told:
                self._told = True
                log.error("%s: nothing for %.0f s; this is where the process stands", late.loop, late.overdue_s())
                faulthandler.dump_traceback(sys.__stderr__ or sys.stderr)
            time.sleep(BEAT_S)


async def beating(beat: Beat) -> None:
    """Call `beat` for ever, from an event loop: a loop that something blocks falls silent."""
    while True:
        beat()
        await asyncio.sleep(BEAT_S)


class Silence:
    """Tells when the process that touches `path` has been silent for longer than `hang_s`; asked again and again.

    It may take `start_s` until its first touch. Times are this process's own: no clock is compared, and what it has
    itself slept through does not count.
    """

    def __init__(self, path: Path, hang_s: float, start_s: float) -> None:
        self._path, self._hang_s, self._patience_s = path, hang_s, max(hang_s, start_s)
        self._silent_s, self._looked = 0.0, time.monotonic()
        with contextlib.suppress(OSError):  # no room: judged once it is there
            for folder in (path.parent.parent, path.parent):
                folder.mkdir(mode=0o700, exist_ok=True)  # `parents=True` would make the first as the umask says
            touch(path)
        self._touched = _touched(path)

    @property
    def silent_s(self) -> float:
        """For how many seconds nothing was heard."""
        return self._silent_s

    def is_too_long(self) -> bool:
        """Whether the process hangs, as far as this file tells. Never where its file system takes nothing."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return False
        passed, self._looked = min(now - self._looked, DOZE_S), now
        touched = _touched(self._path)
        if touched is None or touched != self._touched:
            if touched is not None and self._touched is not None:
                self._patience_s = self._hang_s
            self._touched, self._silent_s = touched, 0.0
            return False
        self._silent_s += passed
        return self._silent_s > self._patience_s and _takes_touches(self._path)


def touch(path: Path) -> None:
    """Set the time of `path` to now; it is made, 0600, if it is not there.

    The process that is looked after may write its folder: a link that it put there is followed by nobody.
    """
    try:
        os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _touched(path: Path) -> int | None:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return None


def _takes_touches(path: Path) -> bool:
    try:
        stat = path.lstat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns), follow_symlinks=False)
    except OSError:
        return False
    return True
