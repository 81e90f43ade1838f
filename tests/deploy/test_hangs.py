"""SIGSTOP of every process in the middle of a run: it is started again, and the run goes on by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.conftest import make_config, make_federation, rounds_done, wait_for, wait_for_run
from tests.deploy.test_faults import coordinator_pid

from sovfed.server.runs import folders
from sovfed.server.runs.attendance import attendance
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
RUN = "endless"
SETTINGS = (
    "server.hang_s=8", "client.hang_s=8", "server.grace_s=2", "server.grace_factor=1", "server.node_wait_s=60",
    "rounds=100000", "task.local_epochs=20", "task.batch_size=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """A federation with a run that does not end by itself."""
    config = make_config(*SETTINGS)
    with make_federation(tmp_path_factory.mktemp("hangs"), config, max_rounds=1_000_000) as federation:
        federation.start_run(RUN, config)
        wait_for(lambda: rounds_done(federation, RUN) >= 2, "two rounds")
        yield federation


def lines(federation: LocalFederation) -> list[dict[str, Any]]:
    return read_rounds(folders.run_folder(federation.home, RUN))


def await_whole_rounds(federation: LocalFederation) -> None:
    """Wait until all four take part again, in a round that begins from now on."""
    before = rounds_done(federation, RUN)
    wait_for(
        lambda: any(len(line["participants"]) == 4 for line in lines(federation)[before + 1 :]), "a round of all four"
    )


@pytest.mark.parametrize("process", ["trainer", "gateway", "supernode"])
def test_an_institution_s_process_that_hangs_is_started_again(running: LocalFederation, process: str) -> None:
    pid = running.pid("hospital-2", process)
    os.kill(pid, signal.SIGSTOP)

    def is_back() -> bool:
        states = {child.name: child for child in running.supervisors["hospital-2"].status().processes}
        return states[process].state == "ready" and states[process].pid not in (None, pid)

    wait_for(is_back, f"another {process}")
    log = running.client_home("hospital-2") / "logs" / f"{process}.log"
    assert "no sign of life for" in log.read_text()
    await_whole_rounds(running)


def test_rounds_went_on_without_the_one_that_hung_and_tell_who_was_missing(running: LocalFederation) -> None:
    """Seen: each round took its whole deadline, and nothing said for whom."""
    told = attendance(lines(running))["hospital-2"]
    assert told["late"] >= 1
    assert [line["round"] for line in lines(running)] == list(range(1, len(lines(running)) + 1))
    without = [line for line in lines(running) if "hospital-2" in (*line["late"], *line["left_out"])]
    assert without and all("hospital-2" not in line["participants"] for line in without)


@pytest.mark.parametrize("process", ["superlink", "registry", "executor"])
def test_a_process_of_the_agency_that_hangs_is_started_again_and_the_run_goes_on(
    running: LocalFederation, process: str
) -> None:
    pid = running.pid("agency", process)
    os.kill(pid, signal.SIGSTOP)

    def is_back() -> bool:
        states = {child.name: child for child in running.supervisors["agency"].status().processes}
        return states[process].state == "ready" and states[process].pid not in (None, pid)

    wait_for(is_back, f"another {process}")
    await_whole_rounds(running)


def test_a_coordinator_that_hangs_is_ended_and_its_run_taken_up(running: LocalFederation) -> None:
    pid = coordinator_pid(running)
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the coordinator to be ended")
    await_whole_rounds(running)
    assert coordinator_pid(running) != pid


def test_a_run_is_stopped_while_the_superlink_hangs_and_says_by_whom(running: LocalFederation) -> None:
    os.kill(running.pid("agency", "superlink"), signal.SIGSTOP)
    folders.stop_run(running.control, running.home, RUN)
    told = folders.read_run(running.home, RUN)
    assert (told["status"], told["reason"]) == ("stopped", "stopped by the operator")


def test_a_run_beyond_a_bound_fails_at_once_and_names_who_and_what(running: LocalFederation) -> None:
    """Seen: the model was sent five times, and "refusals: ['policy']" was all that was said."""
    wait_for(lambda: running.supervisors["agency"].status().ready, "the superlink")
    running.start_run("beyond", make_config("rounds=2", "secagg.max_weight=20000000"))
    told = wait_for_run(running, "beyond")
    assert told["status"] == "failed" and not told["rounds_done"]
    assert all(f"hospital-{number}: secure_aggregation.max_weight" in told["reason"] for number in range(1, 5))
