"""FedSGD: the federation's steps are those of torch.optim on the pooled loss; and optimizers keep off statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from sovfed.federation.config import Config, StrategyConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.plan import LocalPlan, Schedule
from sovfed.federation.tasks.layout import Layout, Part
from sovfed.server.rounds.aggregation import Total
from sovfed.server.strategies import Averaging, Combining, ServerOptimizer, make_optimizer, registry

if TYPE_CHECKING:
    from sovfed.federation.messages import Vector

FEDSGD = StrategyConfig(name="fedsgd")
COUNTS, ROUNDS = (30, 7, 100), 6
ADAMW = LocalPlan(optimizer="adamw", learning_rate=0.05, weight_decay=0.1)


def layout(*shapes: tuple[int, ...], statistics: int = 0) -> Layout:
    parts, start = [], 0
    for number, shape in enumerate(shapes):
        parts.append(Part(f"p{number}", shape, start, trained=True))
        start = parts[-1].place.stop
    if statistics:
        parts.append(Part("running", (statistics,), start, trained=False))
    return Layout(tuple(parts), frozenset(), coupled=False)


def gradient(weights: torch.Tensor, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of the mean squared error of a linear model."""
    return 2 * features.T @ (features @ weights - targets) / len(features)


def institutions() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 4, generator=generator), torch.randn(n, generator=generator)) for n in COUNTS]


def federated(optimizer: ServerOptimizer, rounds: int = ROUNDS) -> Vector:
    model = np.zeros(4, np.float32)
    for number in range(1, rounds + 1):
        weights = torch.from_numpy(model)
        updates = [-gradient(weights, *data) for data in institutions()]  # one step of plain SGD, learning rate 1
        mean = sum(n * update for n, update in zip(COUNTS, updates, strict=True)) / sum(COUNTS)
        assert isinstance(mean, torch.Tensor)
        model = optimizer.step(number, model, mean.numpy())
    return model


def test_the_federation_steps_as_adamw_does_on_the_pooled_records() -> None:
    features, targets = (torch.cat(parts) for parts in zip(*institutions(), strict=True))
    pooled = torch.nn.Parameter(torch.zeros(4))
    adamw = torch.optim.AdamW([pooled], 0.05, weight_decay=0.1)
    for _ in range(ROUNDS):
        pooled.grad = gradient(pooled.detach(), features, targets)
        adamw.step()
    ours = federated(make_optimizer(FEDSGD, plan=ADAMW, layout=layout((4,))))
    np.testing.assert_allclose(ours, pooled.detach().numpy(), atol=1e-6)


def test_the_rate_of_a_round_is_the_middle_of_its_schedule() -> None:
    plan, update = LocalPlan(learning_rate=1.0), np.ones(2, np.float32)
    optimizer = make_optimizer(FEDSGD, plan=plan, schedule=Schedule("linear", rounds=4))
    model = np.zeros(2, np.float32)
    seen = []
    for number in range(1, 5):
        model = optimizer.step(number, model, update)
        seen.append(float(model[0]))
    np.testing.assert_allclose(np.diff([0.0, *seen]), [0.875, 0.625, 0.375, 0.125])


def test_a_gradient_that_was_sent_larger_makes_the_same_step() -> None:
    shapes, update = layout((2, 2)), np.array([0.5, -0.25, 0.125, 1.0], np.float32)  # which ten times are exact
    plain, scaled = (
        make_optimizer(StrategyConfig(name="fedsgd", gradient_scale=scale), plan=ADAMW, layout=shapes)
        for scale in (1.0, 10.0)
    )
    model = other = np.zeros(4, np.float32)
    for number in (1, 2):
        model, other = plain.step(number, model, update), scaled.step(number, other, 10 * update)
    np.testing.assert_array_equal(model, other)
    assert Config(strategy=StrategyConfig(name="fedsgd", gradient_scale=10.0)).local_fields()["learning_rate"] == 10.0
    with pytest.raises(ValueError, match="only strategy=fedsgd sends gradients"):
        StrategyConfig(gradient_scale=2.0)


@pytest.mark.parametrize("plan", [ADAMW, LocalPlan(optimizer="muon", momentum=0.9), LocalPlan(momentum=0.9)])
def test_state_survives_a_restart(plan: LocalPlan) -> None:
    shapes, rng = layout((3, 2), (4,)), np.random.default_rng(0)
    updates = [rng.normal(size=10).astype(np.float32) for _ in range(ROUNDS)]
    whole, first, second = (make_optimizer(FEDSGD, plan=plan, layout=shapes, trained=10) for _ in range(3))
    expected = model = np.zeros(10, np.float32)
    for number, update in enumerate(updates, start=1):
        expected = whole.step(number, expected, update)
    for number, update in enumerate(updates, start=1):
        if number == 3:
            second.restore(first.slots())
            assert second.slots().keys() == first.slots().keys()
        model = (first if number < 3 else second).step(number, model, update)
    np.testing.assert_array_equal(model, expected)


def test_the_model_that_came_in_stays_as_it_is() -> None:
    model = np.zeros(4, np.float32)
    make_optimizer(FEDSGD, plan=ADAMW, layout=layout((4,))).step(1, model, np.ones(4, np.float32))
    assert not model.any()


def test_muon_needs_the_shapes_and_another_strategys_state_is_refused() -> None:
    with pytest.raises(ConfigError, match="muon steps on matrices"):
        make_optimizer(FEDSGD, plan=LocalPlan(optimizer="muon"))
    with pytest.raises(ConfigError, match=r"\['m', 'v'\], which is not fedsgd's"):
        make_optimizer(FEDSGD, plan=ADAMW).restore({"m": np.zeros(4), "v": np.zeros(4)})
    optimizer = make_optimizer(FEDSGD, plan=ADAMW)
    optimizer.restore({"first": np.zeros(3), "second": np.zeros(3), "count": np.array([1])})
    with pytest.raises(ConfigError, match="does not fit"):
        optimizer.step(1, np.zeros(4, np.float32), np.zeros(4, np.float32))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "scaffold", "fedsgd"])
def test_running_statistics_are_averaged_and_never_stepped(name: str) -> None:
    """Of institutions whose running variance falls from 1 to 0.01: with momentum 0.9 a step would end below 0."""
    config = StrategyConfig(name=name, server_momentum=0.9, server_learning_rate=2.0)
    optimizer = make_optimizer(config, trained=3, layout=layout((3,), statistics=2), plan=ADAMW)
    model = np.array([0.0, 0.0, 0.0, 1.0, 1.0], np.float32)
    for number in range(1, 8):
        update = np.concatenate([np.full(3, 0.1, np.float32), 0.5 * (np.float32(0.01) - model[3:])])
        model = optimizer.step(number, model, update)
        assert model.dtype == np.float32 and (model[3:] > 0).all()
    np.testing.assert_allclose(model[3:], 0.01 + 0.99 * 0.5**7, rtol=1e-4)
    assert all(value.size <= 3 for value in optimizer.slots().values())


def test_without_it_momentum_makes_a_variance_negative_in_a_few_rounds() -> None:
    optimizer = make_optimizer(StrategyConfig(name="fedavgm", server_momentum=0.9))
    variance = np.ones(1, np.float32)
    for number in range(1, 4):
        variance = optimizer.step(number, variance, 0.5 * (np.float32(0.01) - variance))
    assert variance[0] < 0


def test_statistics_do_not_change_how_parameters_step() -> None:
    config, rng = StrategyConfig(name="fedadam", server_learning_rate=0.1), np.random.default_rng(0)
    alone, beside = make_optimizer(config), make_optimizer(config, trained=3)
    short = long = np.zeros(3, np.float32)
    long = np.append(long, np.float32(1))
    for number in range(1, 4):
        update = rng.normal(size=3).astype(np.float32)
        short = alone.step(number, short, update)
        long = beside.step(number, long, np.append(update, np.float32(-0.1)))
        np.testing.assert_array_equal(long[:3], short)


class Doubling(Averaging):
    """A strategy from outside, which goes twice as far as it should."""

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        assert model.size == 5
        return (model + 2 * mean_update).astype(np.float32)


class Overruling(Doubling):
    def combine(self, round: int, total: Total, present: int) -> Vector:
        return np.full(5, float(present), np.float32)


class Outside:
    """A strategy that inherits nothing of ours."""

    def __init__(self, inner: ServerOptimizer) -> None:
        self.step, self.slots, self.restore = inner.step, inner.slots, inner.restore


class OutsideCombining(Outside):
    def combine(self, round: int, total: Total, present: int) -> Vector:
        return Overruling().combine(round, total, present)


@pytest.mark.parametrize("kind", [Outside, OutsideCombining])
def test_a_strategy_from_outside_steps_the_whole_vector_and_statistics_get_their_mean(kind: type[Outside]) -> None:
    name = registry.add("outside", lambda config, layout: kind(Doubling()))
    optimizer = make_optimizer(StrategyConfig(name=name), trained=3, layout=layout((3,), statistics=2))
    model = optimizer.step(1, np.ones(5, np.float32), np.full(5, -0.75, np.float32))
    assert model.tolist() == [-0.5, -0.5, -0.5, 0.25, 0.25]
    assert isinstance(optimizer, Combining) == (kind is OutsideCombining)
    if isinstance(optimizer, Combining):
        assert optimizer.combine(1, Total(), 7).tolist() == [7.0] * 5
