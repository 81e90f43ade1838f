"""How a supervisor's process begins: what it has promised to do when something in it cannot go on."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


@pytest.mark.parametrize(
    "start",
    [
        "threading.Thread(target=fail).start()",
        "_thread.start_new_thread(fail, ())",  # as where a thread has not the memory to begin with
    ],
)
@pytest.mark.parametrize(("error", "code"), [("MemoryError", 1), ("KeyError", 0)])
def test_a_process_that_loses_a_thread_for_want_of_memory_ends_whole(start: str, error: str, code: int) -> None:
    """Seen: a trainer at its limit lost the thread that was to answer, lived on, and the run waited without end."""
    program = f"""
        import _thread, threading, time
        from sovfed.federation.host.begin import end_without_memory

        def fail():
            raise {error}

        end_without_memory()
        {start}
        time.sleep(1)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert error in done.stderr and ("for want of memory" in done.stderr) is bool(code)
