"""Ports for processes that are about to start: two programs that ask at the same moment get different ones."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from sovfed.simulations import ports

ASK = "from sovfed.simulations import ports; ports.PORTS = range(20_000, 20_040); print(ports.free_ports(10)); input()"


@pytest.mark.skipif(sys.platform != "linux", reason="names of sockets without a file are Linux's")
def test_programs_that_live_at_the_same_time_get_different_ports() -> None:
    command = [sys.executable, "-c", ASK]
    programs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = []
    for program in programs:
        assert program.stdout is not None
        outputs.append(program.stdout.readline())
    for program in programs:
        program.communicate("\n")
    chosen = [port for output in outputs for port in output.strip("[]\n").split(", ")]
    assert len(set(chosen)) == 30


def test_a_port_that_somebody_listens_on_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "PORTS", range(taken - 8, taken + 8))
        assert taken not in ports.free_ports(4)
