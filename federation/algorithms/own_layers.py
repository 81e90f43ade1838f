"""Parts of the model that stay at each institution, which evaluates and uses the federation's model with its own parts.

fedbn   Li et al. 2021, arXiv:2102.07623, Algorithm 1: normalisation layers, and what the task calls personal
fedper  Arivazhagan et al. 2019, arXiv:1912.00818, with one pass over both halves: what the task calls personal
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.algorithms.algorithm import MODEL, Algorithm, Learning

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.federation.algorithms.algorithm import LocalRound
    from sovfed.federation.tasks.layout import Layout
    from sovfed.federation.vectors import Vector


class OwnParts(Algorithm):
    """An institution trains the model with its own parts, keeps all of it, and sends zeros in their places."""

    def in_use(self, model: Vector, state: Vector | None, layout: Layout) -> Vector:
        return model if state is None else np.where(self.own(layout), state, model)

    def learn(self, local: LocalRound, state: Vector | None) -> Learning:
        start = self.in_use(local.model, state, local.layout)
        update, loss = local.train(start)
        return Learning(np.where(self.own(local.layout), np.float32(0), update), loss, start + update)


class FedPer(OwnParts):
    """What the task calls personal stays."""

    def refusal(self, layout: Layout) -> str:
        if not layout.personal:
            return "has no personal part that could stay at the institutions (`personal`): take fedavg"
        return ""


class FedBN(OwnParts):
    """Normalisation layers stay too."""

    def refusal(self, layout: Layout) -> str:
        if not layout.normalisation.any():
            return "has no normalisation layer that could stay at the institutions: take fedavg"
        return ""

    def own(self, layout: Layout) -> npt.NDArray[np.bool_]:
        return layout.places(layout.personal | layout.normalised)


FEDBN: Final = FedBN("fedbn", local="fedbn", keeps=MODEL, partial=True, private=False, stacked=False)
FEDPER: Final = FedPer("fedper", local="fedper", keeps=MODEL, partial=True, private=False, stacked=False)
