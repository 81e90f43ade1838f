"""A run that the policies which institutions begin with refuse is told of before anybody is asked for a signature."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.server.orders.test_apart import COMMON, told

from sovfed.clients.ledger.entries import Budget
from sovfed.federation.compose import compose
from sovfed.federation.config import PrivacyConfig
from sovfed.federation.errors import PolicyError, ServiceError
from sovfed.federation.tasks.registry import configured_task
from sovfed.server.cli.run import cli, planned
from sovfed.server.home import init
from sovfed.server.orders.foreseen import MOST, beyond_usual, foreseen
from sovfed.server.orders.making import read_order
from sovfed.server.orders.proposing import configured
from sovfed.server.rounds.privacy import vector_size

PRIVATE = (*COMMON, "privacy=distributed", "rounds=3")
LIMIT = "one run may take 1.5 (privacy.max_share_per_run 0.5 of annual_epsilon 3)"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    init(tmp_path / "server", compose([]).config)
    return tmp_path / "server"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*PRIVATE, "privacy.epsilon=3"), LIMIT),
        ((*COMMON, "privacy=distributed", "statistics=mean radius", "privacy.epsilon=2",
          "order.purpose=statistics of radii"), LIMIT),
        ((*PRIVATE, "privacy.delta=1e-5"), "its δ is 1e-05, and a policy begins with privacy.delta 1e-06"),
    ],
)  # fmt: skip
def test_a_cost_beyond_the_usual_budget_is_told_when_it_is_proposed_and_before_it_starts(
    home: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in told(home, *words, "run_name=dear")
    config = configured(home, words)
    plan = planned(config, vector_size(config, configured_task(config.task)))
    proposal = read_order(home / "runs" / "dear")
    assert proposal is not None and plan is not None
    assert beyond_usual(plan) == foreseen(home, proposal.order)
    assert said in foreseen(home, proposal.order)[0]


@pytest.mark.parametrize("words", [PRIVATE, (*COMMON, "rounds=3")])
def test_what_the_usual_budget_takes_is_not_warned_of(home: Path, words: tuple[str, ...]) -> None:
    assert "warning" not in told(home, *words, "run_name=usual")


def test_the_agency_warns_by_the_numbers_that_a_policy_begins_with() -> None:
    budget, asked = Budget(), PrivacyConfig()
    assert MOST == budget.max_share_per_run * budget.annual_epsilon == asked.epsilon == 1.5
    assert asked.delta == budget.delta == 1e-6


def test_a_run_that_every_usual_policy_refuses_is_not_started_without_a_word_of_it(home: Path) -> None:
    """No server is up here: what is not held back comes as far as that."""
    words = ("start", *PRIVATE, "privacy.epsilon=3", "run_name=dear", "--home", str(home))
    held = CliRunner().invoke(cli, words)
    assert isinstance(held.exception, PolicyError)
    for said in ("not started", LIMIT, "privacy.epsilon=1.5", "--anyway"):
        assert said in str(held.exception)
    on = CliRunner().invoke(cli, (*words, "--anyway"))
    assert isinstance(on.exception, ServiceError) and "warning: institutions will refuse this" in on.stderr
    usual = CliRunner().invoke(cli, ("start", *PRIVATE, "run_name=usual", "--home", str(home)))
    assert isinstance(usual.exception, ServiceError) and "warning" not in usual.stderr
    assert not list((home / "runs").glob("*"))


@pytest.mark.parametrize("rate", [0.1, 2.0])
def test_small_steps_are_told_of_a_private_run(home: Path, rate: float) -> None:
    config = configured(home, (*PRIVATE, "privacy.epsilon=1", f"task.learning_rate={rate}", "task.schedule=constant"))
    plan = planned(config, 31)
    assert plan is not None
    assert ("move the model by 0.3 at most" in plan.timid) is (rate == 0.1)
    assert bool(plan.timid) is (rate == 0.1)
