"""kill -9 of every process in the middle of a run: the run ends right."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.conftest import finished, make_config, make_federation, rounds_done, wait_for

from sovfed.server.runs import folders
from sovfed.server.runs.recovery import LOOK_S, TRIED
from sovfed.server.runs.release import read_model
from sovfed.server.runs.spare import is_spare
from sovfed.simulations.deployment import LocalFederation
from sovfed.simulations.federation import simulate

pytestmark = pytest.mark.deploy
# about 0.2 s of training a round, so that a kill lands inside one
ROUNDS = 10
SLOW = (f"rounds={ROUNDS}", "task.local_epochs=40", "task.batch_size=4", "server.min_cohort=4")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Each round is of all four, or its model would be another: a run takes an agency's own server settings."""
    with make_federation(tmp_path_factory.mktemp("federation"), make_config("server.min_cohort=4")) as running:
        yield running


def start(federation: LocalFederation, name: str, *overrides: str) -> None:
    federation.start_run(name, make_config(*SLOW, *overrides))
    wait_for(lambda: rounds_done(federation, name) >= 3, f"three rounds of {name}")


def expected_model(federation: LocalFederation, folder: Path, *overrides: str) -> np.ndarray:
    config = make_config(*SLOW, *overrides)
    return simulate(config, [member.data for member in federation.institutions], folder).model


def assert_undisturbed(federation: LocalFederation, name: str, expected: np.ndarray) -> None:
    """The run's model is the undisturbed one, but for the random rounding of secure aggregation."""
    np.testing.assert_allclose(model(federation, name), expected, atol=1e-4)


def run_folder(federation: LocalFederation, name: str) -> Path:
    return folders.run_folder(federation.home, name)


def model(federation: LocalFederation, name: str) -> np.ndarray:
    return read_model(run_folder(federation, name)).vector


@pytest.fixture(scope="module")
def undisturbed(federation: LocalFederation, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return expected_model(federation, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("process", ["trainer", "gateway", "supernode"])
def test_a_killed_process_of_an_institution_costs_no_round(
    federation: LocalFederation, undisturbed: np.ndarray, process: str
) -> None:
    name = f"kill-{process}"
    start(federation, name)
    pid = federation.pid("hospital-2", process)
    os.kill(pid, signal.SIGKILL)
    lines = finished(federation, name)
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    assert all(len(line["participants"]) == 4 for line in lines)
    assert_undisturbed(federation, name, undisturbed)
    assert federation.pid("hospital-2", process) != pid


@pytest.mark.parametrize("process", ["superlink", "registry"])
def test_a_killed_process_of_the_agency_comes_back_and_the_run_goes_on(
    federation: LocalFederation, undisturbed: np.ndarray, process: str
) -> None:
    name = f"kill-{process}"
    start(federation, name)
    os.kill(federation.pid("agency", process), signal.SIGKILL)
    lines = finished(federation, name)
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    assert_undisturbed(federation, name, undisturbed)


def coordinator_pid(federation: LocalFederation) -> int:
    """The process whose command line is our coordinator's over this federation's home."""
    wanted = str(federation.home).encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        pid = int(entry.parent.name)
        if b"sovfed.server.runs.app" in words and wanted in words and not is_spare(pid):
            return pid
    raise AssertionError("no coordinator is running")


@pytest.mark.parametrize("process", ["coordinator", "executor", "both"])
def test_a_run_whose_coordinator_or_executor_is_killed_goes_on_by_itself(
    federation: LocalFederation, undisturbed: np.ndarray, process: str
) -> None:
    name = f"kill-{process}"
    start(federation, name)
    coordinator = coordinator_pid(federation)
    if process != "coordinator":
        os.kill(federation.pid("agency", "executor"), signal.SIGKILL)
    if process != "executor":
        os.kill(coordinator, signal.SIGKILL)
    lines = finished(federation, name)
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    assert_undisturbed(federation, name, undisturbed)
    assert (run_folder(federation, name) / TRIED).exists() == (process != "executor")


def test_a_run_goes_on_when_the_agency_is_up_again(federation: LocalFederation, undisturbed: np.ndarray) -> None:
    """As after a reboot: nobody has stopped the run, so it is not over."""
    start(federation, "reboot")
    federation.supervisors["agency"].stop()
    assert folders.read_run(federation.home, "reboot")["status"] == folders.INTERRUPTED
    federation.start_agency()
    lines = finished(federation, "reboot")
    assert [line["round"] for line in lines] == list(range(1, ROUNDS + 1))
    assert_undisturbed(federation, "reboot", undisturbed)


def test_a_run_that_was_stopped_while_it_was_down_stays_so(federation: LocalFederation) -> None:
    start(federation, "given-up")
    os.kill(federation.pid("agency", "executor"), signal.SIGSTOP)
    os.kill(coordinator_pid(federation), signal.SIGKILL)
    wait_for(lambda: folders.read_run(federation.home, "given-up")["status"] == folders.INTERRUPTED, "it to be noticed")
    folders.stop_run(federation.control, federation.home, "given-up")
    os.kill(federation.pid("agency", "executor"), signal.SIGCONT)
    time.sleep(3 * LOOK_S)
    assert folders.read_run(federation.home, "given-up", federation.control)["status"] == "stopped"


def test_a_stopped_run_is_resumed(federation: LocalFederation, undisturbed: np.ndarray) -> None:
    name = "stopped"
    start(federation, name)
    folders.stop_run(federation.control, federation.home, name)
    assert folders.read_run(federation.home, name)["status"] == "stopped"
    federation.start_run(name, make_config(*SLOW), resume=True)
    finished(federation, name)
    assert_undisturbed(federation, name, undisturbed)
