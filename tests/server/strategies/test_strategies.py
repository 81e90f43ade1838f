"""Server optimizers: stepping with the mean update equals Flower's own strategy over the individual replies."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.wire.flower import new_message
from sovfed.server.rounds.aggregation import Fold
from sovfed.server.strategies import adaptive, make_optimizer
from sovfed.server.strategies.averaged import Averaged

COUNTS = (256, 17, 90)


def flower_strategy(name: str) -> Any:
    strategies: dict[str, Callable[[], FedAvg]] = {
        "fedavg": FedAvg,
        "fedprox": FedAvg,
        "fedavgm": lambda: FedAvgM(server_learning_rate=0.7, server_momentum=0.5),
        "fedadam": lambda: FedAdam(eta=0.7, beta_1=0.8, beta_2=0.95, tau=0.01),
        "fedyogi": lambda: FedYogi(eta=0.7, beta_1=0.8, beta_2=0.95, tau=0.01),
        "fedadagrad": lambda: FedAdagrad(eta=0.7, tau=0.01),
    }
    return strategies[name]()


def config(name: str) -> StrategyConfig:
    return StrategyConfig(
        name=name, server_learning_rate=0.7, server_momentum=0.5, beta_1=0.8, beta_2=0.95, tau=0.01
    )  # fmt: skip


def flower_step(strategy: Any, number: int, model: np.ndarray, updates: list[np.ndarray]) -> np.ndarray:
    """One round of Flower's own strategy over the individual replies."""
    if isinstance(strategy, FedAvgM):
        strategy.current_arrays = ArrayRecord({"model": Array(model)})
    elif type(strategy) is not FedAvg:
        strategy.current_arrays = {"model": model}
    replies = [
        new_message(
            RecordDict(
                {
                    "arrays": ArrayRecord({"model": Array(model + update)}),
                    "metrics": MetricRecord({"num-examples": count}),
                }
            ),
            run_id=1,
            node_id=i,
            kind="train",
            group="1",
        )
        for i, (update, count) in enumerate(zip(updates, COUNTS, strict=True))
    ]
    arrays, _ = strategy.aggregate_train(number, replies)
    assert arrays is not None
    found: np.ndarray = arrays["model"].numpy()
    return found


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_step_with_the_mean_update_equals_flowers_own_strategy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "PIECE", 16)
    rng = np.random.default_rng(0)
    model = rng.normal(size=50).astype(np.float32)
    theirs, ours = model.copy(), model.copy()
    flower, optimizer = flower_strategy(name), make_optimizer(config(name))
    for number in (1, 2, 3):
        updates = [rng.normal(size=50).astype(np.float32) for _ in COUNTS]
        fold = Fold(50)
        for update, count in zip(updates, COUNTS, strict=True):
            fold.add(update, count)
        theirs = flower_step(flower, number, theirs, updates)
        ours = optimizer.step(number, ours, fold.mean())
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6)


def test_with_nesterov_the_outer_step_is_torchs_on_the_mean_update_as_a_gradient() -> None:
    rng = np.random.default_rng(2)
    settings = StrategyConfig(name="fedavgm", server_learning_rate=0.7, server_momentum=0.9, server_nesterov=True)
    ours, optimizer = rng.normal(size=30).astype(np.float32), make_optimizer(settings)
    value = torch.nn.Parameter(torch.from_numpy(ours.copy()))
    theirs = torch.optim.SGD([value], lr=0.7, momentum=0.9, nesterov=True)
    for number in (1, 2, 3, 4):
        update = rng.normal(size=30).astype(np.float32)
        value.grad = torch.from_numpy(-update)
        theirs.step()
        ours = optimizer.step(number, ours, update)
        np.testing.assert_allclose(ours, value.detach().numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="strategy=fedavgm"):
        StrategyConfig(name="fedavg", server_nesterov=True)


@pytest.mark.parametrize("name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_restored_slots_continue_as_if_uninterrupted(name: str) -> None:
    rng = np.random.default_rng(1)
    model = rng.normal(size=20).astype(np.float32)
    updates = [rng.normal(size=20).astype(np.float32) for _ in range(4)]
    whole, first, second = (make_optimizer(config(name)) for _ in range(3))
    expected = got = model
    for number, update in enumerate(updates, start=1):
        expected = whole.step(number, expected, update)
    for number, update in enumerate(updates[:2], start=1):
        got = first.step(number, got, update)
    second.restore(first.slots())
    for number, update in enumerate(updates[2:], start=3):
        got = second.step(number, got, update)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_a_step_makes_one_vector(name: str) -> None:
    size = 1_000_000
    model, update, optimizer = np.ones(size, np.float32), np.ones(size, np.float32), make_optimizer(config(name))
    following = optimizer.step(1, model, update)
    tracemalloc.start()
    try:
        optimizer.step(2, following, update)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * model.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_slots_that_were_taken_stay_as_they_were(name: str) -> None:
    """They are written to disk, on another thread, while the next step is taken."""
    model, optimizer = np.ones(5, np.float32), make_optimizer(config(name))
    following = optimizer.step(1, model, model)
    slots = optimizer.slots()
    before = {key: slot.copy() for key, slot in slots.items()}
    optimizer.step(2, following, model)
    assert slots and all((slots[key] == before[key]).all() for key in before)


def test_state_of_another_strategy_is_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer state"):
        make_optimizer(config("fedavg")).restore({"m": np.zeros(3)})
    with pytest.raises(ConfigError, match="optimizer state"):
        make_optimizer(config("fedavgm")).restore({"m": np.zeros(3)})


def test_fold_is_the_weighted_mean_by_hand() -> None:
    fold = Fold(2)
    fold.add(np.array([1.0, 2.0], dtype=np.float32), 1)
    fold.add(np.array([4.0, -1.0], dtype=np.float32), 3)
    np.testing.assert_array_equal(fold.mean(), np.array([3.25, -0.25], dtype=np.float32))


def test_fold_does_not_depend_on_the_order_of_replies() -> None:
    rng = np.random.default_rng(2)
    updates = [rng.normal(size=300_000).astype(np.float32) for _ in range(5)]
    counts = [256, 170, 97, 46, 11]
    forward, backward = Fold(300_000), Fold(300_000)
    for i in range(5):
        forward.add(updates[i], counts[i])
        backward.add(updates[4 - i], counts[4 - i])
    np.testing.assert_array_equal(forward.mean(), backward.mean())


def test_the_running_average_is_that_of_the_models_and_survives_a_restart() -> None:
    rng, decay = np.random.default_rng(3), 0.8
    model = rng.normal(size=200_000).astype(np.float32)
    updates = [rng.normal(size=model.size).astype(np.float32) for _ in range(5)]
    kept, models = Averaged(make_optimizer(config("fedavgm")), decay), [model]
    assert kept.average(model) is model
    for number, update in enumerate(updates, start=1):
        if number == 3:
            slots, kept = kept.slots(), Averaged(make_optimizer(config("fedavgm")), decay)
            kept.restore(slots)
        models.append(kept.step(number, models[-1], update))
    weights = decay ** np.arange(4, -1, -1)
    expected = np.tensordot(weights / weights.sum(), np.stack(models[1:]), 1)
    np.testing.assert_allclose(kept.average(models[-1]), expected, rtol=1e-4, atol=1e-5)
    plain = make_optimizer(config("fedavgm"))
    plain.restore({name: slot for name, slot in kept.slots().items() if not name.startswith("ema.")})
    with pytest.raises(ConfigError):
        plain.restore(kept.slots())
