"""A process that goes by another clock waits as long as it says: only the day is another one."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from sovfed.simulations.audit.chaos import clocks

WAITS = """
import datetime, threading, time
lock = threading.Lock()
lock.acquire()
lock.acquire(timeout=0.1)
threading.Event().wait(0.1)
time.sleep(0.1)
print(time.time(), datetime.datetime.now().timestamp())
"""


@pytest.mark.skipif(clocks.library() is None, reason="no C compiler")
@pytest.mark.parametrize("days", [1, -1])
def test_locks_of_a_process_by_another_clock_wait_no_longer(days: int) -> None:
    """Seen: with its monotonic clock moved, too, each lock with a time limit waited for a day."""
    library = clocks.library()
    assert library is not None
    done = subprocess.run(
        [sys.executable, "-I", "-c", WAITS], env={**os.environ, **clocks.environment(days * clocks.DAY_S, library)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert all(abs(float(said) - time.time() - days * clocks.DAY_S) < 60 for said in done.stdout.split())
