"""A process that goes by another clock waits as long as it says: only the day is another one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sovfed.simulations.audit.chaos import clocks

WAITS = """
import threading, time
lock = threading.Lock()
lock.acquire()
lock.acquire(timeout=0.1)
threading.Event().wait(0.1)
print(time.time())
"""


@pytest.mark.skipif(clocks.library() is None, reason="libfaketime is not installed")
@pytest.mark.parametrize(("offset", "days"), [("+1d", 1), ("-1d", -1)])
def test_locks_of_a_process_by_another_clock_wait_no_longer(tmp_path: Path, offset: str, days: int) -> None:
    """Seen: with its monotonic clock moved, too, each lock with a time limit waited for a day."""
    library, stamp = clocks.library(), tmp_path / "stamp"
    assert library is not None
    stamp.write_text(offset)
    done = subprocess.run(
        [sys.executable, "-I", "-c", WAITS], env={**os.environ, **clocks.environment(stamp, library)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert abs(float(done.stdout) - time.time() - days * 86_400) < 3_600
