"""FedNova (Wang et al. 2020, arXiv:2007.07481, equation 9 with plain SGD): updates per step.

So institutions that take more steps weigh no more: new = model + τ_eff · mean(updateᵢ / τᵢ), τ_eff = mean(τᵢ).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.algorithms.algorithm import Algorithm, Learning
from sovfed.federation.algorithms.server_half import Averaging, RoundTotal, mean_of

if TYPE_CHECKING:
    from sovfed.federation.algorithms.algorithm import LocalRound, Settings
    from sovfed.federation.vectors import Vector


class FedNova(Algorithm):
    """An institution divides its update by the number of its steps."""

    def learn(self, local: LocalRound, state: Vector | None) -> Learning:
        update, loss = local.train()
        return Learning(update / np.float32(local.steps), loss)

    def server(self, settings: Settings, trained: int | None) -> FedNovaServer:
        return FedNovaServer()


class FedNovaServer(Averaging):
    """model + τ_eff · the mean update per step."""

    def combine(self, round: int, total: RoundTotal, present: int) -> Vector:
        """The update to step with, shape [d]."""
        return np.multiply(mean_of(total), total.steps / total.count, dtype=np.float32)


FEDNOVA: Final = FedNova(
    "fednova", local="fednova", private=False, stacked=False,
    assumes="it divides an update by the number of its plain steps",
)  # fmt: skip
