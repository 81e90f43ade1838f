"""Local plans and schedules: steps counted by hand, shares of the rate at known places, and what goes together."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from sovfed.federation.algorithms import LOCAL
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError
from sovfed.federation.plan import LocalPlan, Schedule
from sovfed.federation.schema import bind


@pytest.mark.parametrize(
    ("plan", "count", "epochs"),
    [
        (LocalPlan(batch_size=8, local_epochs=2), 20, [3, 3]),
        (LocalPlan(batch_size=8, accumulation=2, local_epochs=2), 20, [2, 2]),
        (LocalPlan(batch_size=8, local_steps=1, local_epochs=5), 20, [1]),
        (LocalPlan(batch_size=8, local_steps=7), 20, [3, 3, 1]),
        (LocalPlan(batch_size=8, local_steps=6), 20, [3, 3]),
        (LocalPlan(batch_size=100, local_steps=3), 20, [1, 1, 1]),
        (LocalPlan(batch_size=8, local_steps=7), 0, []),
        (LocalPlan(batch_size=8), 0, []),
    ],
)
def test_steps_fill_epochs_in_order_and_the_last_breaks_off(plan: LocalPlan, count: int, epochs: list[int]) -> None:
    assert plan.epochs(count) == epochs
    assert plan.steps(count) == sum(epochs)


def test_rates_lie_on_the_line_between_the_rounds_ends_and_their_mean_does_not_depend_on_the_steps() -> None:
    plan = LocalPlan(learning_rate=0.0, final_rate=1.0)
    assert [plan.rate(step, 4) for step in range(4)] == [0.125, 0.375, 0.625, 0.875]
    for steps in (1, 3, 10):
        assert sum(plan.rate(step, steps) for step in range(steps)) / steps == pytest.approx(plan.mean_rate)


def test_a_constant_rate_is_that_to_the_bit() -> None:
    assert {LocalPlan(learning_rate=0.1, final_rate=0.1).rate(step, 7) for step in range(7)} == {0.1}


@pytest.mark.parametrize(
    ("schedule", "places"),
    [
        (Schedule(), {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        (Schedule(warmup=0.2), {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 1.0: 1.0}),
        (Schedule("linear", floor=0.1), {0.0: 1.0, 0.5: 0.55, 1.0: 0.1}),
        (Schedule("cosine"), {0.0: 1.0, 0.25: 0.8535533905932737, 0.5: 0.5, 1.0: 0.0}),
        (Schedule("cosine", warmup=0.5, floor=0.2), {0.25: 0.5, 0.5: 1.0, 0.75: 0.6, 1.0: 0.2}),
        (Schedule("wsd", warmup=0.1, cooldown=0.2), {0.05: 0.5, 0.1: 1.0, 0.8: 1.0, 0.9: 0.5, 1.0: 0.0}),
        (Schedule("wsd", cooldown=1.0), {0.0: 1.0, 0.5: 0.5, 1.0: 0.0}),
    ],
)
def test_a_schedule_is_its_formula(schedule: Schedule, places: dict[float, float]) -> None:
    for progress, share in places.items():
        assert schedule.at(progress) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
def test_each_round_begins_where_the_last_one_ended_and_shares_stay_within_bounds(kind: str) -> None:
    schedule = Schedule(kind, warmup=0.13, floor=0.0, rounds=37)
    ends = [schedule.ends(number) for number in range(1, 38)]
    assert all(before[1] == after[0] for before, after in pairwise(ends))
    assert all(0.0 <= share <= 1.0 for pair in ends for share in pair)
    assert schedule.ends(99)[1] == ends[-1][1]  # a resumed run may have more rounds than planned


def test_the_configuration_becomes_the_plan() -> None:
    values = {"optimizer": "muon", "weight_decay": 0.1, "learning_rate": 0.4, "schedule": "cosine", "local_steps": 5}
    task = bind(Config, {"task": values, "rounds": 4}).task
    plan = task.plan(1.0, 0.5, proximal_mu=0.3)
    assert plan == LocalPlan(
        "muon", 0.95, True, weight_decay=0.1, local_steps=5, learning_rate=0.4, final_rate=0.2, proximal_mu=0.3
    )
    assert task.schedule_over(4) == Schedule("cosine", rounds=4)
    assert Config().task.plan().plain


def test_scaffold_and_fednova_say_what_they_assume() -> None:
    scaffold, fednova = LOCAL["scaffold"], LOCAL["fednova"]
    assert scaffold.why_not(LocalPlan()) == LOCAL["sgd"].why_not(LocalPlan(optimizer="adamw")) == ""
    assert "plain gradients" in scaffold.why_not(LocalPlan(optimizer="adamw"))
    assert "plain steps" in fednova.why_not(LocalPlan(momentum=0.9))
    assert fednova.why_not(LocalPlan(final_rate=0.0)) == ""
    assert "one learning rate" in scaffold.why_not(LocalPlan(final_rate=0.0))


ADAMW, COSINE = {"optimizer": "adamw"}, {"schedule": "cosine"}
PRIVATE: dict[str, Any] = {"server": {"min_cohort": 5}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": ADAMW, "strategy": {"name": "scaffold"}}, "'scaffold' assumes plain SGD"),
        ({"task": ADAMW, "strategy": {"name": "fednova"}}, "'fednova' assumes plain SGD"),
        ({"task": COSINE, "strategy": {"name": "scaffold"}}, "'scaffold' assumes one learning rate"),
        ({"task": ADAMW, "privacy": {"mechanism": "distributed"}}, "strategy=fedadam"),
        ({"task": ADAMW, "privacy": {"mechanism": "silo"}}, "'silo' adds up clipped gradients"),
        (
            {"task": {"momentum": 0.9, "gradient_clip": 1.0}, "privacy": {"mechanism": "distributed"}},
            "plain SGD: add task.momentum=0 task.gradient_clip=0;",
        ),
        ({"task": {"momentum": 0.9}, "privacy": {"mechanism": "distributed"}}, "plain SGD"),
        ({"task": {"local_steps": 3}, "privacy": {"mechanism": "silo"}}, "privacy.local_steps"),
        ({"task": COSINE, "privacy": {"mechanism": "institution"}}, "constant of the run's plan"),
        ({"strategy": {"name": "fedsgd"}, "privacy": {"mechanism": "institution"}}, "privacy=distributed"),
        ({"strategy": {"name": "fedsgd"}, "task": {"local_steps": 2}}, "one step a round"),
        ({"patience": 3, "privacy": {"mechanism": "distributed"}}, "a private run has none"),
        ({"keep_best": True, "strategy": {"name": "ditto"}}, "no longer whole"),
        ({"patience": 3, "evaluate_every": 5}, "nothing is known by then"),
        ({"task": {"nesterov": True}}, "momentum is 0"),
        ({"task": {"optimizer": "adamw", "momentum": 0.9}}, "beta_1"),
        ({"task": {"schedule": "wsd", "warmup": 0.9}}, "more than all rounds"),
        ({"task": {"floor": 0.1}}, "never falls"),
        ({"strategy": {"ema": 0.9, "name": "fednova"}}, "strategy.ema publishes"),
        ({"strategy": {"ema": 0.9}, "keep_best": True}, "strategy.ema publishes"),
        ({"strategy": {"rate_units": True}}, "task.optimizer=adamw or muon, task.local_steps"),
        ({"strategy": {"rate_units": True}, "task": ADAMW}, "task.local_steps"),
        ({"strategy": {"rate_units": True, "name": "fedsgd"}, "task": ADAMW}, "as under fedavg"),
        (
            {"strategy": {"rate_units": True}, "task": {**ADAMW, "local_steps": 3}, "privacy": {"mechanism": "silo"}},
            "clipped and",
        ),
        ({"task": {"keep_state": True}}, "plain SGD has no state"),
        ({"task": {**ADAMW, "keep_state": True}, "strategy": {"name": "fedsgd"}}, "no steps of an optimizer"),
        ({"task": {**ADAMW, "keep_state": True}, "strategy": {"name": "fedbn"}}, "no steps of an optimizer"),
        ({"task": {**ADAMW, "keep_state": True}, "privacy": {"mechanism": "institution"}}, "gradients without noise"),
        ({"task": {**ADAMW, "keep_state": True}, "simulation": {"engine": "vectorised"}}, "keeps nothing"),
        ({"strategy": {"down_bits": 24}}, "down_bits is 24"),
        ({"strategy": {"down_bits": 16, "name": "scaffold"}}, "strategy.down_bits rounds"),
        ({"strategy": {"down_bits": 16, "name": "fednova"}}, "strategy.down_bits rounds"),
        ({"strategy": {"down_bits": 16, "name": "ditto"}}, "strategy.down_bits rounds"),
        ({"strategy": {"down_bits": 16, "name": "of_a_package"}}, "strategy.down_bits rounds"),
        ({"strategy": {"down_bits": 16}, "privacy": {"mechanism": "distributed"}}, "without privacy"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind(Config, values)


@pytest.mark.parametrize(
    "values",
    [
        {"task": ADAMW, "privacy": {"mechanism": "institution"}, **PRIVATE},
        {"task": ADAMW, "strategy": {"name": "fedsgd"}, "privacy": {"mechanism": "distributed"}, **PRIVATE},
        {"task": COSINE, "privacy": {"mechanism": "distributed"}, **PRIVATE},
        {"task": {"optimizer": "adamw", "schedule": "wsd", "warmup": 0.1}, "patience": 5, "keep_best": True},
        {"task": {"optimizer": "muon", "local_steps": 3}, "strategy": {"name": "fedadam", "rate_units": True}},
        {"strategy": {"down_bits": 16, "name": "fedadam", "ema": 0.9}},
        {"strategy": {"down_bits": 16, "name": "fedper"}},
        {"task": {"momentum": 0.9, "keep_state": True}, "strategy": {"name": "fedavgm"}},
    ],
)
def test_what_goes_together_is_accepted(values: dict[str, Any]) -> None:
    bind(Config, values)
