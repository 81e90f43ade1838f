"""The server's half of SCAFFOLD and FedNova."""

from __future__ import annotations

import numpy as np
import pytest

from sovfed.federation.algorithms.fednova import FedNovaServer
from sovfed.federation.algorithms.scaffold import ScaffoldServer
from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import ConfigError
from sovfed.server.rounds.aggregation import Total
from sovfed.server.strategies import make_optimizer

MODEL = np.zeros(2, np.float32)


def total(mean: list[float], participants: int = 4, **more: float) -> Total:
    return Total(participants=list(range(participants)), count=100, mean=np.array(mean, np.float32), **more)  # type: ignore[arg-type]


def test_fednova_multiplies_by_the_mean_number_of_steps() -> None:
    update = FedNovaServer().combine(1, total([0.5, -1.0], steps=1_200.0), 4)
    assert update.tolist() == [6.0, -12.0] and update.dtype == np.float32


def test_scaffolds_control_is_the_mean_when_all_take_part_and_moves_by_their_share_otherwise() -> None:
    scaffold = make_optimizer(StrategyConfig(name="scaffold", server_learning_rate=0.5))
    assert isinstance(scaffold, ScaffoldServer)
    assert scaffold.control(MODEL).tolist() == [0.0, 0.0]
    assert scaffold.combine(1, total([2.0, 4.0, 1.0, -1.0]), 4).tolist() == [1.0, 2.0]
    assert scaffold.control(MODEL).tolist() == [1.0, -1.0]
    scaffold.combine(2, total([0.0, 0.0, 5.0, 3.0]), 16)
    assert scaffold.control(MODEL).tolist() == [2.0, 0.0]


def test_scaffolds_control_survives_a_restart_and_nothing_else_is_taken() -> None:
    before, after = (make_optimizer(StrategyConfig(name="scaffold")) for _ in range(2))
    assert isinstance(before, ScaffoldServer) and isinstance(after, ScaffoldServer) and before.slots() == {}
    before.combine(1, total([0.0, 0.0, 1.0, 2.0]), 4)
    after.restore(before.slots())
    assert after.control(MODEL).tolist() == [1.0, 2.0]
    with pytest.raises(ConfigError, match="'m'"):
        after.restore({"m": MODEL})
