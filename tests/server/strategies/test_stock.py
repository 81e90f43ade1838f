"""Strategies from outside: Flower's as they are, a script's own, and what is neither."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM

from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.registry import get_task
from sovfed.server.strategies import make_optimizer, registry
from sovfed.server.strategies.stock import StockStrategy

LAYOUT = get_task("digits").layout
GENERATOR = np.random.default_rng(3)
MODEL = GENERATOR.normal(size=LAYOUT.size).astype(np.float32)
UPDATES = [GENERATOR.normal(size=LAYOUT.size).astype(np.float32) for _ in range(3)]


def test_flowers_average_moves_the_model_by_the_mean_update() -> None:
    strategy = StockStrategy(FedAvg(), LAYOUT)
    np.testing.assert_allclose(strategy.step(1, MODEL, UPDATES[0]), MODEL + UPDATES[0], rtol=1e-6, atol=1e-6)


def test_a_stock_strategy_steps_as_our_own_setting_of_it() -> None:
    """Our setting drives the same class with one flat array; names and shapes must not matter to it."""
    pairs = [
        (FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3), {"name": "fedadam", "server_learning_rate": 0.1}),
        (FedAvgM(server_learning_rate=0.5, server_momentum=0.9),
         {"name": "fedavgm", "server_learning_rate": 0.5, "server_momentum": 0.9}),
    ]  # fmt: skip
    for theirs, settings in pairs:
        stock = StockStrategy(theirs, LAYOUT)
        ours = make_optimizer(StrategyConfig(**settings))  # type: ignore[arg-type]
        one = other = MODEL
        for number, update in enumerate(UPDATES, 1):
            one, other = stock.step(number, one, update), ours.step(number, other, update)
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_strategy_may_ask_who_is_there_and_do_nothing_else() -> None:
    class Curious(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            assert len(list(grid.get_node_ids())) >= 2
            grid.push_messages([])
            return []

    with pytest.raises(ConfigError, match="may not send messages"):
        StockStrategy(Curious(), LAYOUT).step(1, MODEL, UPDATES[0])


def test_what_a_strategy_keeps_to_itself_is_not_resumed() -> None:
    with pytest.raises(ConfigError, match="cannot be resumed"):
        StockStrategy(FedAvg(), LAYOUT).restore({})


class Halving:
    """model + half the mean update."""

    def step(self, round: int, model: np.ndarray, mean_update: np.ndarray) -> np.ndarray:
        return model + np.float32(0.5) * mean_update

    def slots(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, slots: dict[str, np.ndarray]) -> None: ...


def test_a_strategy_of_ones_own_is_named_and_used() -> None:
    name = registry.add("halving", lambda _config, _layout: Halving())
    assert name in registry.names()
    optimizer = make_optimizer(StrategyConfig(name="halving"))
    assert (optimizer.step(1, np.zeros(2, np.float32), np.ones(2, np.float32)) == 0.5).all()


def test_what_is_no_strategy_is_refused_and_an_unknown_name_has_a_hint() -> None:
    registry.add("nothing", lambda _config, _layout: object())
    with pytest.raises(ConfigError, match="neither step"):
        make_optimizer(StrategyConfig(name="nothing"))
    with pytest.raises(ConfigError, match="did you mean 'fedadam'"):
        make_optimizer(StrategyConfig(name="fedadamm"))
