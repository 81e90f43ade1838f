"""SIGSTOP of every process in the middle of a run: it is started again, and the run goes on by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.deploy.conftest import finished, make_config, make_federation, rounds_done, wait_for, wait_for_run
from tests.deploy.test_faults import coordinator_pid

from sovfed.clients.training.halfway import FILE as HALFWAY
from sovfed.server.runs import folders
from sovfed.server.runs.attendance import attendance
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
RUN = "endless"
SETTINGS = (
    "server.hang_s=8", "client.hang_s=8", "server.grace_s=2", "server.grace_factor=1", "server.node_wait_s=60",
    "rounds=100000", "task.local_epochs=20", "task.batch_size=8", "client.halfway_s=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """A federation with a run that does not end by itself."""
    config = make_config(*SETTINGS)
    bounds = {"max_rounds": 1_000_000, "max_sums_per_run": 10**9}
    with make_federation(tmp_path_factory.mktemp("hangs"), config, **bounds) as federation:
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


def hang(federation: LocalFederation, *processes: tuple[str, str]) -> None:
    """Stop each (owner, process) as a dead disk would, and wait until another has taken its place."""
    pids = {(owner, process): federation.pid(owner, process) for owner, process in processes}
    for pid in pids.values():
        os.kill(pid, signal.SIGSTOP)

    def is_back(owner: str, process: str) -> bool:
        states = {child.name: child for child in federation.supervisors[owner].status().processes}
        return states[process].state == "ready" and states[process].pid not in (None, pids[owner, process])

    wait_for(lambda: all(is_back(*each) for each in processes), f"others instead of {processes}")
    for owner, process in processes:
        home = federation.home if owner == "agency" else federation.client_home(owner)
        assert "no sign of life for" in (home / "logs" / f"{process}.log").read_text()


def test_a_trainer_that_hangs_is_started_again(running: LocalFederation) -> None:
    hang(running, ("hospital-2", "trainer"))
    await_whole_rounds(running)


def test_rounds_went_on_without_the_one_that_hung_and_tell_who_was_missing(running: LocalFederation) -> None:
    """Seen: each round took its whole deadline, and nothing said for whom."""
    so_far = lines(running)  # the run goes on meanwhile
    assert attendance(so_far)["hospital-2"]["late"] >= 1
    assert [line["round"] for line in so_far] == list(range(1, len(so_far) + 1))
    without = [line for line in so_far if "hospital-2" in (*line["late"], *line["left_out"])]
    assert without and all("hospital-2" not in line["participants"] for line in without)


def test_whatever_hangs_is_started_again_and_the_run_goes_on(running: LocalFederation) -> None:
    coordinator = coordinator_pid(running)
    hang(
        running, ("hospital-3", "gateway"), ("hospital-4", "supernode"), ("agency", "superlink"),
        ("agency", "registry"), ("agency", "executor"),
    )  # fmt: skip
    await_whole_rounds(running)
    assert coordinator_pid(running) == coordinator


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


def test_a_trainer_that_is_killed_in_a_long_round_goes_on_at_its_step(running: LocalFederation) -> None:
    wait_for(running.control.alive, "the superlink")
    home, pid = running.client_home("hospital-2"), running.pid("hospital-2", "trainer")
    long = ("rounds=1", "task.local_epochs=1000", "task.batch_size=1", "client.halfway_s=0.5", "server.node_wait_s=60")
    running.start_run("long", make_config(*long))
    wait_for((home / HALFWAY).exists, "the state of a round on disk")
    os.kill(pid, signal.SIGKILL)
    log = home / "logs" / "trainer.log"
    wait_for(lambda: "goes on where it was" in log.read_text(), "the round to go on")
    finished(running, "long")
    wait_for(lambda: not (home / HALFWAY).exists(), "the state to be gone")


def test_a_run_beyond_a_bound_fails_at_once_and_names_who_and_what(running: LocalFederation) -> None:
    """Seen: the model was sent five times, and "refusals: ['policy']" was all that was said."""
    wait_for(running.control.alive, "the superlink")
    running.start_run("beyond", make_config("rounds=2", "secagg.max_weight=20000000"))
    told = wait_for_run(running, "beyond")
    assert told["status"] == "failed" and not told["rounds_done"]
    assert all(f"hospital-{number}: secure_aggregation.max_weight" in told["reason"] for number in range(1, 5)), told[
        "reason"
    ]
