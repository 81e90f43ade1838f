"""Work that may take long, in a command: it says what it is at, and is given up after a time."""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

QUIET_S: Final = 2.0  # before anything is said
EVERY_S: Final = 10.0  # a line, where no terminal shows a line that changes


class OutOfTimeError(BaseException):
    """The time is over. No Exception, so that nothing that reads records takes it for their fault."""


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Run the body for at most `seconds`, saying `what` it does on stderr. Raises OutOfTimeError.

    Only a main thread can be interrupted; in another the body runs on, silently.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    start, terminal = time.monotonic(), sys.stderr.isatty()
    reported_at = QUIET_S - EVERY_S

    def look(_signal: int, _frame: object) -> None:
        nonlocal reported_at
        passed = time.monotonic() - start
        if passed >= seconds:
            raise OutOfTimeError
        if terminal and passed >= QUIET_S:
            sys.stderr.write(f"\r\x1b[K{what}: {passed:.0f} s of at most {seconds:.0f}")
            sys.stderr.flush()
        elif not terminal and passed >= reported_at + EVERY_S:
            reported_at = passed
            sys.stderr.write(f"{what}: {passed:.0f} s of at most {seconds:.0f}\n")

    before = signal.signal(signal.SIGALRM, look)
    step = min(0.5, seconds)
    signal.setitimer(signal.ITIMER_REAL, step, step)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        if terminal and time.monotonic() - start >= QUIET_S:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
