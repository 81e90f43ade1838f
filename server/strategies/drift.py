"""The server's half of strategies that change local training; the institutions' is `clients/training/algorithms.py`.

SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1). An institution sends cᵢ⁺ rather than cᵢ⁺ − cᵢ, and
c ← (1 − s)·c + s·mean(cᵢ⁺), where s is the part of the institutions that took part. With all of them this is the
paper's c. With a sample, the paper's mean of their old cᵢ is replaced by its expectation, c: the coordinator keeps no
institution's cᵢ, and a reply that was lost does not leave c wrong for good. Means are weighted by records, as FedAvg's.

FedNova (Wang et al. 2020, arXiv:2007.07481, equation 9): new = model + τ_eff · mean(updateᵢ / τᵢ), τ_eff = mean(τᵢ).
"""

from __future__ import annotations

import numpy as np

from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import ConfigError, ProtocolError
from sovfed.federation.messages import Vector
from sovfed.server.rounds.aggregation import Total
from sovfed.server.strategies.protocol import Averaging, Slots


class FedNova(Averaging):
    """model + τ_eff · the mean update per step."""

    def combine(self, round: int, total: Total, present: int) -> Vector:
        """The update to step with, shape [d]."""
        return np.multiply(_mean(total), total.steps / total.count, dtype=np.float32)


class Scaffold(Averaging):
    """model + η · the mean update, and the control variate c, shape [d], that goes out with the next model."""

    def __init__(self, config: StrategyConfig, trained: int | None = None) -> None:
        """η is of the first `trained` places; what comes behind them, running statistics, moves by its mean."""
        self._eta, self._trained = config.server_learning_rate, trained
        self._control: Vector | None = None

    def control(self, model: Vector) -> Vector:
        """c; zero before the first round."""
        return np.zeros_like(model) if self._control is None else self._control

    def combine(self, round: int, total: Total, present: int) -> Vector:
        """The update to step with, shape [d], of means of shape [2d]; c moves on."""
        update, mean_control = np.split(_mean(total), 2)
        share = len(total.participants) / max(present, len(total.participants))
        control = self.control(update)
        self._control = (control + share * (mean_control - control)).astype(np.float32)
        stepped = np.array(update, dtype=np.float32)
        stepped[: self._trained] *= np.float32(self._eta)
        return stepped

    def slots(self) -> Slots:
        return {} if self._control is None else {"control": self._control}

    def restore(self, slots: Slots) -> None:
        if set(slots) - {"control"}:
            raise ConfigError(f"the checkpoint holds optimizer state {sorted(slots)}, SCAFFOLD keeps its control only")
        self._control = slots.get("control")


def _mean(total: Total) -> Vector:
    if total.mean is None or not total.count:
        raise ProtocolError("a round without a mean update")
    return total.mean
