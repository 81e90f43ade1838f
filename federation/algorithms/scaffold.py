"""SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II of cᵢ⁺): variates against drift.

An institution sends cᵢ⁺ rather than cᵢ⁺ − cᵢ, and c ← (1 − s)·c + s·mean(cᵢ⁺), where s is the part of the institutions
that took part. With all of them this is the paper's c. With a sample, the paper's mean of their old cᵢ is replaced by
its expectation, c: the coordinator keeps no institution's cᵢ, and a reply that was lost does not leave c wrong for
good. Means are weighted by records, as FedAvg's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.algorithms.algorithm import VARIATE, Algorithm, Learning
from sovfed.federation.algorithms.server_half import Averaging, RoundTotal, Slots, mean_of
from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from sovfed.federation.algorithms.algorithm import LocalRound, Settings
    from sovfed.federation.vectors import Vector


class Scaffold(Algorithm):
    """An institution corrects its steps by c − cᵢ, and keeps cᵢ."""

    def learn(self, local: LocalRound, state: Vector | None) -> Learning:
        own = np.zeros_like(local.model) if state is None else state
        correction = local.only_trained(local.control - own)
        update, loss = local.train(correction=correction)
        gradient = local.only_trained(update / np.float32(-local.steps * local.learning_rate)) - correction
        return Learning(np.concatenate([update, gradient]), loss, gradient)

    def idle(self, model: Vector, state: Vector | None) -> Vector:
        return np.concatenate([np.zeros_like(model), np.zeros_like(model) if state is None else state])

    def server(self, settings: Settings, trained: int | None) -> ScaffoldServer:
        return ScaffoldServer(settings.server_learning_rate, trained)


class ScaffoldServer(Averaging):
    """model + η · the mean update, and the control variate c, shape [d], that goes out with the next model."""

    def __init__(self, eta: float = 1.0, trained: int | None = None) -> None:
        """η is of the first `trained` places; what comes behind them, running statistics, moves by its mean."""
        self._eta, self._trained = eta, trained
        self._control: Vector | None = None

    def control(self, model: Vector) -> Vector:
        """c; zero before the first round."""
        return np.zeros_like(model) if self._control is None else self._control

    def combine(self, round: int, total: RoundTotal, present: int) -> Vector:
        """The update to step with, shape [d], of means of shape [2d]; c moves on."""
        update, mean_control = np.split(mean_of(total), 2)
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


SCAFFOLD: Final = Scaffold(
    "scaffold", local="scaffold", keeps=VARIATE, variate=True, private=False, stacked=False, constant_rate=True,
    assumes="its control variates are means of plain gradients",
)  # fmt: skip
