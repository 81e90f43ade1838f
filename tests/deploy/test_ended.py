"""SIGTERM, as of `timeout`, or SIGHUP, as of a closed session, to whoever runs a federation: nothing is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from tests.deploy.conftest import wait_for

from sovfed.simulations.benchmarks.process_tree import mentioning

pytestmark = pytest.mark.deploy
COUNTS = ("server.min_cohort=3", "server.start_cohort=3", "simulation.institutions=3")
PROGRAM = f"""
import sys, time
from pathlib import Path
from sovfed.federation.compose import compose
from sovfed.server.runs import folders
from sovfed.simulations.deployment import Institution, LocalFederation
from sovfed.simulations.federation import institution_names, sites

config = compose(["rounds=1000", "task.local_epochs=5", "privacy.colluders=0", *{COUNTS!r}]).config
data = sites(config)
members = [Institution(name, source) for name, source in zip(institution_names(data), data)]
with LocalFederation(Path(sys.argv[1]), members, config) as federation:
    federation.start_run("endless")
    while not folders.read_run(federation.home, "endless").get("rounds_done"):
        time.sleep(0.1)
    print("running", flush=True)
    time.sleep(300)
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_federation_that_is_ended_leaves_no_process_behind(
    tmp_path_factory: pytest.TempPathFactory, number: signal.Signals
) -> None:
    """Seen: a session that was closed left the coordinator of its demonstration behind."""
    folder = tmp_path_factory.mktemp("ended")  # short: the paths of sockets are
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().strip() == "running"
            assert {*mentioning(str(folder))} & {*mentioning("server.runs.app")}
            for _ in range(2):
                process.send_signal(number)
            assert process.wait(60) == 128 + number
            wait_for(lambda: not mentioning(str(folder)), "no process of the federation", 30)
        finally:
            process.kill()
