"""A process of ours ends with its own exit code, and before Python takes anything away beneath a thread."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sovfed

PROGRAM = """
import atexit, sys, threading, time
from sovfed.federation.host.leaving import leave

class Module:
    def __del__(self):
        sys.__stdout__.write("taken away") if sys else None

kept = Module()
atexit.register(print, "atexit")

def main():
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    {end}

leave(main)
"""


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        ("sys.exit(75)", 75, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('no home here')", 1, "no home here\n"),
        ("raise ValueError('a fault')", 1, "ValueError: a fault\n"),
    ],
)
def test_process_ends_with_its_code(end: str, code: int, words: str) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert ended.stderr.endswith(words)
    assert ended.stdout == "thread\natexit\n"


def test_what_ends_a_process_is_in_its_log_and_forges_no_line_there() -> None:
    """What a peer sent may stand in an exception, which came out as lines of its own, with a terminal's codes."""
    for form in ("json", "%(levelname)s %(name)s: %(message)s"):
        program = (
            "from sovfed.federation.host.leaving import leave\nfrom sovfed.federation.host.logs import log_to_stderr\n"
            f"log_to_stderr({form!r})\n"
            "def main(): raise ValueError('a fault\\nINFO sovfed: all is well\\x1b[2J')\nleave(main)\n"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert ended.returncode == 1 and "a fault" in ended.stderr and "ended by an exception" in ended.stderr
        assert "\x1b" not in ended.stderr and "\nINFO" not in ended.stderr
        assert (len(ended.stderr.splitlines()) == 1) is (form == "json")


def test_a_signal_while_threads_are_waited_for_leaves_nothing_undone() -> None:
    """A folder of records' copies, or of a task's code, would lie there for ever."""
    main = "signal.signal(signal.SIGALRM, signal.default_int_handler); signal.setitimer(0, 0.1); return 0"
    ended = subprocess.run(
        [sys.executable, "-c", "import signal" + PROGRAM.format(end=main)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and "KeyboardInterrupt" in ended.stderr
    assert ended.stdout.endswith("atexit\n")


def test_lost_reader_is_an_error_and_no_crash() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(end="print('x' * 100_000); return 0")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.close()
        assert child.wait(30) == 1


def test_every_process_of_a_supervisor_ends_so() -> None:
    """Those that begin as a child does: what crashes after its work would be started again, or be called failed."""
    package = Path(sovfed.__file__).parent
    sources = [source for part in ("clients", "server", "federation") for source in (package / part).rglob("*.py")]
    children = [source for source in sources if "if __name__ ==" in source.read_text() and _begins(source.read_text())]
    assert len(children) >= 12
    assert [source.name for source in children if not source.read_text().endswith("    leave(main)\n")] == []


def _begins(text: str) -> bool:
    return "begin(" in text or "die_with_parent()" in text or "import_module(" in text or "def run(home" in text
