"""The stand-in for the machine's init system: what its watchdog does not hear of is killed, what speaks is not."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.simulations.audit.chaos import machine

SPEAKS = """
import socket, sys, time
for _ in range(12):
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"WATCHDOG=1", sys.argv[1])
    time.sleep(0.5)
"""


@pytest.mark.parametrize(("code", "expected"), [(SPEAKS, 0), ("import time; time.sleep(600)", -signal.SIGKILL)])
def test_what_the_watchdog_does_not_hear_of_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: int
) -> None:
    monkeypatch.setattr(machine, "WATCHDOG_S", 5.0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(machine.LISTEN_S)
        with subprocess.Popen([sys.executable, "-I", "-c", code, str(tmp_path / "notify")]) as process:
            machine._watch(process, heard)
    assert process.returncode == expected
