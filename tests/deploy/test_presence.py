"""Nobody is lost: runs that end while they are fetched, institutions that are away, loops that do not come round."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.conftest import finished, make_config, make_federation, summary, wait_for

from sovfed.federation.config import ClientConfig
from sovfed.federation.files import private_directory
from sovfed.federation.host.processes import Process, Supervisor, read_status
from sovfed.federation.host.pulse import pulse_file
from sovfed.federation.host.quiet import quiet_environment
from sovfed.federation.host.settings import settings_file
from sovfed.server.runs import folders
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
SIZE = 4
DEAF = """
import sys
from sovfed.clients.node import gateway
gateway.LOOK_S = 1.0
sys.exit(gateway.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def echoing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    config = make_config("task=echo", f"simulation.institutions={SIZE}")
    with make_federation(tmp_path_factory.mktemp("presence"), config) as running:
        yield running


def log_of(federation: LocalFederation, name: str, process: str) -> str:
    return (federation.client_home(name) / "logs" / f"{process}.log").read_text()


def run(federation: LocalFederation, name: str, rounds: int = 2, **server: Any) -> None:
    config = dataclasses.replace(federation.config, rounds=rounds)
    before = federation.config
    federation.config = dataclasses.replace(before, server=dataclasses.replace(before.server, **server))
    try:
        federation.start_run(name, config)
    finally:
        federation.config = before


def test_a_run_that_ends_while_institutions_fetch_its_offer_loses_nobody(echoing: LocalFederation) -> None:
    """One of them stands still meanwhile, as on a machine that swaps; the next run has all of them."""
    slow = echoing.institutions[1].name
    before = log_of(echoing, slow, "supernode").count("Receiving")
    run(echoing, "ended", rounds=1000)
    wait_for(lambda: log_of(echoing, slow, "supernode").count("Receiving") > before, "the offer to arrive")
    pid = echoing.pid(slow, "supernode")
    os.kill(pid, signal.SIGSTOP)
    try:
        folders.stop_run(echoing.control, echoing.home, "ended")
    finally:
        os.kill(pid, signal.SIGCONT)
    run(echoing, "next")
    assert len(finished(echoing, "next")[0]["participants"]) == SIZE
    assert all(child.restarts == 0 for child in echoing.supervisors[slow].status().processes)


def test_gateways_that_are_killed_as_a_run_starts_are_in_its_first_round(echoing: LocalFederation) -> None:
    killed = [echoing.institutions[2].name, echoing.institutions[3].name]
    run(echoing, "killed")
    for name in killed:
        os.kill(echoing.pid(name, "gateway"), signal.SIGKILL)
    assert len(finished(echoing, "killed")[0]["participants"]) == SIZE


def test_who_is_missing_and_since_when_stands_in_run_show_and_in_the_summary(echoing: LocalFederation) -> None:
    """The run asked for all, waits no longer than it may, and goes on with those that are there."""
    away = echoing.institutions[0].name
    echoing.supervisors.pop(away).stop()
    started = time.time()
    run(echoing, "without", node_wait_s=3.0)
    rounds = finished(echoing, "without")
    assert len(rounds[0]["participants"]) == SIZE - 1
    told = subprocess.run(
        [sys.executable, "-m", "sovfed", "run", "show", "without", "--home", str(echoing.home)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"{SIZE - 1} of {SIZE} joined, missing {away} since " in told
    presence = folders.read_run(echoing.home, "without")["presence"]
    assert (presence["joined"], presence["wanted"], list(presence["missing"])) == (SIZE - 1, SIZE, [away])
    assert started <= presence["missing"][away] <= time.time()
    assert summary(echoing, "without")["presence"]["missing"] == presence["missing"]
    echoing.start_institution(away)
    run(echoing, "complete", node_wait_s=60.0)
    assert len(finished(echoing, "complete")[0]["participants"]) == SIZE
    assert read_rounds(folders.run_folder(echoing.home, "complete"))
    assert folders.read_run(echoing.home, "complete")["presence"]["missing"] == {}


@contextlib.contextmanager
def trickling() -> Iterator[int]:
    """A port whose server answers each request with a byte a second, for ever: no time-out of a client's ends that."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def trickle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
            while not over.wait(1.0):
                connection.sendall(b"\0")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=trickle, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        over.set()
        listener.close()


def test_a_gateway_that_hangs_in_a_call_is_called_silent_and_started_again(
    echoing: LocalFederation, tmp_path: Path
) -> None:
    """Its process lives, and nothing that it waits for is over: only that its loop does not come round tells."""
    home = echoing.client_home(echoing.institutions[0].name)
    own = tmp_path / "institution"
    for folder in (own, own / "secrets", own / "run", own / "run" / "gateway", own / "state"):
        private_directory(folder)
    shutil.copytree(home / "identity", own / "identity")
    with trickling() as port:
        config = ClientConfig(home=str(own), runtime_port=port, hang_s=12.0)
        arguments = ["--home", str(own), "--config", str(settings_file(own, config))]
        argv = [sys.executable, "-I", "-u", "-c", DEAF, *arguments]
        gateway = Process("gateway", argv, quiet_environment(own), pulse=pulse_file(own, "gateway"), hang_s=12.0)
        supervisor = Supervisor(own, [gateway])
        supervisor.start()
        try:
            wait_for(lambda: supervisor.status().processes[0].state == "silent", "the status to say so", 120.0)
            told = read_status(own)
            assert told is not None
            assert not told.ready
            wait_for(lambda: supervisor.status().processes[0].restarts >= 1, "a new start", 120.0)
        finally:
            supervisor.stop()
    log = (own / "logs" / "gateway.log").read_text()
    assert "looking for tasks: nothing for" in log
    assert "no sign of life" in log
