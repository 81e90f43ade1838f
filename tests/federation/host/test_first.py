"""A container's first process: signals reach the child, orphans are reaped, the exit code is the child's."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

RUN = """
import signal, sys
from sovfed.federation.host.first import run
for number in (signal.SIGINT, signal.SIGHUP):  # which a job in the background ignores, and all that it starts
    signal.signal(number, signal.SIG_DFL)
sys.exit(run(sys.argv[1:]))
"""


def start(*argv: str, apart: bool = False) -> subprocess.Popen[str]:
    """The first process with `argv` as its child; `apart`: really the first, of a process namespace."""
    before = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"] if apart else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([*before, sys.executable, "-c", RUN, *argv], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_its_exit_code_is_the_child_s(command: str, code: int) -> None:
    with start("/bin/sh", "-c", command) as first:
        assert first.wait(60) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    with start("/bin/sh", "-c", f"trap 'exit 7' {name}; echo ready; while :; do sleep 0.05; done") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        first.send_signal(number)
        assert first.wait(60) == 7


def test_what_ends_without_a_parent_is_reaped() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("no process namespace can be made here")
    script = (
        "(sleep 0.1 & sleep 0.1 &) ; (sleep 0.1 &) ; sleep 1; grep -c '^State:.*Z' /proc/[0-9]*/status | grep -c ':1'"
    )
    with start("/bin/sh", "-c", f"{script}; true", apart=True) as first:
        told, _ = first.communicate(timeout=60)
        assert told == "0\n"


def test_a_child_starts_with_no_signal_blocked() -> None:
    with start("/bin/sh", "-c", "grep SigBlk /proc/self/status") as first:
        told, _ = first.communicate(timeout=60)
        assert int(told.split()[1], 16) == 0
