"""What a round's request says of local training: schedules, server optimizers, and rounds without an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sovfed.federation.compose import compose
from sovfed.federation.messages import SumRequest, TrainRequest
from sovfed.federation.plan import LocalPlan
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.aggregation import Total
from sovfed.server.rounds.loop import Rounds
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.strategies import optimizer_of
from sovfed.simulations.grid import InMemoryGrid

TASK = get_task("breast_cancer")


class Recording:
    """An aggregation whose every sum is an update of ones."""

    def __init__(self) -> None:
        self.requests: list[TrainRequest] = []

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        assert isinstance(request, TrainRequest)
        self.requests.append(request)
        return Total(
            participants=list(nodes), count=10, mean=np.ones(request.model.size, np.float32), sums=np.zeros(width)
        )

    def describe(self) -> dict[str, Any]:
        return {}


def federation(*overrides: str) -> tuple[Rounds, Recording]:
    config = compose(["rounds=4", "secagg=none", "server.min_cohort=1", *overrides]).config
    recording = Recording()
    rounds = Rounds(config, "7", InMemoryGrid({1: lambda *_: None}), optimizer_of(config, TASK), recording)  # type: ignore[dict-item]
    rounds.model = np.zeros(TASK.parameters, np.float32)
    return rounds, recording


def test_an_institution_is_told_the_configured_plan_and_its_share_of_the_schedule() -> None:
    rounds, recording = federation(
        "task.optimizer=adamw", "task.weight_decay=0.1", "task.schedule=linear", "task.learning_rate=0.2",
        "task.gradient_clip=1", "task.accumulation=2", "task.local_steps=7", "strategy=fedprox",
    )  # fmt: skip
    rounds.train(2)
    expected = LocalPlan(
        "adamw", weight_decay=0.1, gradient_clip=1.0, accumulation=2, local_epochs=2, local_steps=7,
        learning_rate=0.2 * 0.75, final_rate=0.2 * 0.5, proximal_mu=0.01,
    )  # fmt: skip
    assert recording.requests[0].plan == expected


def test_under_fedsgd_institutions_take_one_plain_step_and_the_server_the_rest() -> None:
    rounds, recording = federation(
        "strategy=fedsgd", "task.optimizer=adamw", "task.learning_rate=0.2", "task.schedule=linear"
    )
    rounds.train(1)
    assert recording.requests[0].plan == LocalPlan(local_steps=1, learning_rate=1.0, final_rate=1.0)
    np.testing.assert_allclose(rounds.model, 0.2 * 0.875, rtol=1e-6)  # AdamW's first step is the rate, along the sign


def test_rounds_between_evaluations_ask_for_none_and_tell_none() -> None:
    rounds, recording = federation("evaluate_every=3")
    done = [rounds.train(number) for number in range(1, 5)]
    assert [request.evaluate for request in recording.requests] == [True, False, False, True]
    assert [one.evaluation is not None for one in done] == [True, False, False, True]


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ((), [0.3, 0.3, 0.3, 0.3]),
        (("task.schedule=linear",), [0.2625, 0.1875, 0.1125, 0.0375]),
        (("strategy=fedsgd", "task.optimizer=adamw"), [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_a_noised_sum_of_gradients_is_scaled_by_the_rounds_rate(overrides: tuple[str, ...], rates: list[float]) -> None:
    config = compose(["privacy=distributed", "rounds=4", "server.min_cohort=5", *overrides]).config
    plan = PrivacyPlan(config, "trial", 31, 20.0)
    total = Total(count=5, integers=np.full(31, 2**12, np.int64))
    steps = [float(plan.mean_update(total, number)[0]) for number in range(1, 5)]
    np.testing.assert_allclose(np.array(steps) / steps[0], np.array(rates) / rates[0], rtol=1e-6)
    whole = PrivacyPlan(compose(["privacy=distributed", "server.min_cohort=5"]).config, "trial", 31, 20.0)
    assert steps[0] == pytest.approx(float(whole.mean_update(total)[0]) / 0.3 * rates[0])
