"""Flower's adaptive server strategies behind `ServerOptimizer`. What is touched beyond their public API is their state:
`current_arrays`, `m_t`, `v_t`, `momentum_vector` (held by `tests/server/strategies/test_adapter.py`)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

from sovfed.federation.algorithms.server_half import Slots
from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import Vector
from sovfed.federation.wire.flower import new_message

KEY: Final = "model"


def _make(config: StrategyConfig) -> FedAvg:
    eta = config.server_learning_rate
    match config.name:
        case "fedavgm":
            return FedAvgM(server_learning_rate=eta, server_momentum=config.server_momentum)
        case "fedadam":
            return FedAdam(eta=eta, beta_1=config.beta_1, beta_2=config.beta_2, tau=config.tau)
        case "fedyogi":
            return FedYogi(eta=eta, beta_1=config.beta_1, beta_2=config.beta_2, tau=config.tau)
        case "fedadagrad":
            return FedAdagrad(eta=eta, tau=config.tau)
    raise ConfigError(f"'{config.name}' has no server's half")


class FlowerOptimizer:
    """One of these, stepped with a single reply that holds the round's aggregate."""

    def __init__(self, config: StrategyConfig) -> None:
        self._strategy: Any = _make(config)

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        momentum = isinstance(self._strategy, FedAvgM)
        self._strategy.current_arrays = ArrayRecord({KEY: Array(model)}) if momentum else {KEY: model}
        arrays, _ = self._strategy.aggregate_train(round, [_reply(np.add(model, mean_update, dtype=np.float32))])
        return arrays[KEY].numpy().astype(np.float32, copy=False)  # type: ignore[no-any-return]

    def slots(self) -> Slots:
        if isinstance(self._strategy, FedAvgM):
            momentum = self._strategy.momentum_vector
            return {} if momentum is None else {"momentum": momentum[0]}
        moments = {"m": self._strategy.m_t, "v": self._strategy.v_t}
        return {name: moment[KEY] for name, moment in moments.items() if moment}

    def restore(self, slots: Slots) -> None:
        supported = {"momentum"} if isinstance(self._strategy, FedAvgM) else {"m", "v"}
        if set(slots) - supported:
            raise ConfigError(
                f"the checkpoint holds optimizer state {sorted(slots)}, this strategy keeps {sorted(supported)}"
            )
        if "momentum" in slots:
            self._strategy.momentum_vector = [slots["momentum"]]
        for name in {"m", "v"} & set(slots):
            setattr(self._strategy, f"{name}_t", {KEY: slots[name]})


def _reply(aggregate: Vector) -> FlowerMessage:
    content = RecordDict(
        {"arrays": ArrayRecord({KEY: Array(aggregate)}), "metrics": MetricRecord({"num-examples": 1.0})}
    )
    return new_message(content, run_id=0, node_id=0, kind="train", group="")
