"""What is counted over runs, days and restarts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.clients.cli.institution import cli
from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import Policy
from sovfed.clients.trainer.allowance import AHEAD, DAY_S, FILE, RUNS, Allowance, clear_failures, read_state
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import PolicyError
from sovfed.federation.messages import EvaluateRequest, ProfileRequest

SMALL = Policy(max_sums_per_run=5, max_sums_per_day=8, max_evaluations_per_run=2, max_evaluations_per_day=3)


def profile(run: str = "a") -> ProfileRequest:
    return ProfileRequest(run=run, task="heart")


def evaluation(run: str = "a") -> EvaluateRequest:
    return EvaluateRequest(run=run, round=1, task="heart", model=np.zeros(14, np.float32), scale=np.ones(26))


def test_a_run_gets_so_many_sums_and_a_day_so_many_over_all_runs(tmp_path: Path) -> None:
    now = [10.5 * DAY_S]
    allowance = Allowance(tmp_path, SMALL, lambda: now[0])
    for _ in range(5):
        allowance.take(profile())
    with pytest.raises(PolicyError, match="max_sums_per_run is 5"):
        allowance.take(profile())
    for _ in range(3):
        allowance.take(profile("b"))
    with pytest.raises(PolicyError, match="max_sums_per_day is 8"):
        allowance.take(profile("c"))
    now[0] -= 5 * DAY_S  # a clock set back begins no new day
    with pytest.raises(PolicyError, match="max_sums_per_day"):
        allowance.take(profile("c"))
    now[0] += 6 * DAY_S
    allowance.take(profile("c"))
    with pytest.raises(PolicyError, match="max_sums_per_run"):  # of a run: for ever
        allowance.take(profile())


def test_evaluations_are_counted_by_themselves_and_exactly_over_a_restart(tmp_path: Path) -> None:
    policy = Policy(max_evaluations_per_run=2, max_evaluations_per_day=3)
    for run, allowed in (("a", True), ("a", True), ("a", False), ("b", True), ("b", False)):
        allowance = Allowance(tmp_path, policy, lambda: 0.0)
        if allowed:
            allowance.take(evaluation(run))
            continue
        with pytest.raises(PolicyError, match="max_evaluations"):
            allowance.take(evaluation(run))


def test_the_parts_of_a_run_share_what_it_may_ask(tmp_path: Path) -> None:
    """RUN.2, RUN.3, … were each a run of its own, whoever named them."""
    allowance = Allowance(tmp_path, Policy(max_sums_per_run=4, max_evaluations_per_run=2), lambda: 0.0)
    for run in ("a", "a.2"):
        allowance.take(evaluation(run))
    with pytest.raises(PolicyError, match="max_evaluations_per_run"):
        allowance.take(evaluation("a.3"))
    for run in ("a.3", "a.4"):
        allowance.take(profile(run))
    with pytest.raises(PolicyError, match="max_sums_per_run"):
        allowance.take(profile("a.5"))


def test_a_restart_forgets_no_sum_and_forfeits_few(tmp_path: Path) -> None:
    allowance = Allowance(tmp_path, Policy(), lambda: 0.0)
    for count in range(1, 2 * AHEAD + 2):
        allowance.take(profile())
        assert count <= read_state(tmp_path).today.sums < count + AHEAD


def test_once_nothing_is_asked_the_count_is_what_was_answered(tmp_path: Path) -> None:
    """Seen: 43 sums in `client status` after a run of 12, whose order promised 13 at most."""
    allowance = Allowance(tmp_path, Policy(), lambda: 0.0)
    for _ in range(12):
        allowance.take(profile())
        allowance.settle()
    assert read_state(tmp_path).today.sums > 12
    allowance.settle()
    state = read_state(tmp_path)
    assert state.today.sums == 12 and [tally.sums for tally in state.runs.values()] == [12]
    allowance.take(profile())  # a crash now forgets none
    assert read_state(tmp_path).today.sums >= 13
    assert Allowance(tmp_path, Policy(), lambda: 0.0)._current().today.sums >= 13  # nor does a restart


def test_failures_stop_a_run_and_then_everything_and_only_clearing_helps(tmp_path: Path) -> None:
    now = [0.0]
    policy = Policy(max_failures_per_run=2, max_failures_per_day=3)
    allowance = Allowance(tmp_path, policy, lambda: now[0])
    for run in ("a", "a", "b"):
        allowance.take(profile(run))
        allowance.failed(run, "data")
    for day in (0, 40):  # not by waiting
        now[0] = day * DAY_S
        for run in ("a", "b", "new"):
            with pytest.raises(PolicyError, match="too many failures"):
                allowance.take(profile(run))
    again = Allowance(tmp_path, policy, lambda: now[0])
    with pytest.raises(PolicyError, match="too many failures"):
        again.take(profile("new"))
    assert clear_failures(tmp_path).reason == "data"
    again.take(profile("a"))
    assert read_state(tmp_path).failures == 0


def test_new_names_make_no_old_failure_forgotten_and_the_file_stays_small(tmp_path: Path) -> None:
    allowance = Allowance(tmp_path, Policy(max_failures_per_run=1, max_sums_per_day=10**6), lambda: 0.0)
    allowance.take(profile("bad"))
    allowance.failed("bad", "data")
    for number in range(RUNS + 50):
        allowance.take(profile(f"run-{number}"))
    with pytest.raises(PolicyError, match="too many failures"):
        allowance.take(profile("bad"))
    assert len(read_state(tmp_path).runs) <= RUNS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"day": 1}', '{"day": 0, "runs": {"a": 3}}', "\x00"])
def test_a_damaged_file_lets_nothing_start(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(text)
    with pytest.raises(PolicyError, match=r"allowance\.json"):
        Allowance(tmp_path, Policy())


def test_the_operator_sees_failures_and_clears_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    policy = Policy(allowed_tasks=("heart",), max_failures_per_run=1)
    create(home, ClientConfig(home=str(home)), policy)
    allowance = Allowance(home, policy)
    allowance.take(profile("a"))
    allowance.failed("a", "data")
    runner = CliRunner()
    for command in (["failures"], ["failures", "--clear"]):
        shown = runner.invoke(cli, [*command, "--home", str(home)])
        assert shown.exit_code == 0, shown.output
        assert "failures: 1" in shown.output and ": data" in shown.output
        assert "refused until `sovfed client failures --clear`: 'a'" in shown.output
    found = json.loads(runner.invoke(cli, ["status", "--json", "--home", str(home)]).stdout)["requests"]
    assert (found["failures"], found["sums_today"] > 0) == (0, True)
    allowance.take(profile("a"))


def test_what_a_sum_lacks_is_told_at_home_and_refuses_nothing(tmp_path: Path) -> None:
    """Whatever is refused is seen: an institution that stopped after it would tell what its records are like."""
    home = tmp_path / "home"
    create(home, ClientConfig(home=str(home)), SMALL)
    allowance = Allowance(home, SMALL)
    for _ in range(RUNS):
        allowance.lacking("counts")
    allowance.require_open("counts")
    assert read_state(home).lacking == {"counts": RUNS} and read_state(home).failures == 0
    told = CliRunner().invoke(cli, ["failures", "--clear", "--home", str(home)])
    assert f"{RUNS} sums of run 'counts' lack records of this institution" in told.output
    assert read_state(home).lacking == {}
