"""Ditto (Li et al. 2021, arXiv:2012.04221, Algorithm 1): FedAvg, and a personal model beside it, pulled towards it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.federation.algorithms.algorithm import MODEL, Algorithm, Learning

if TYPE_CHECKING:
    from sovfed.federation.algorithms.algorithm import LocalRound
    from sovfed.federation.tasks.layout import Layout
    from sovfed.federation.vectors import Vector


class Ditto(Algorithm):
    """An institution uses its personal model, which it keeps and never sends."""

    def in_use(self, model: Vector, state: Vector | None, layout: Layout) -> Vector:
        return model if state is None else state

    def learn(self, local: LocalRound, state: Vector | None) -> Learning:
        update, loss = local.train()
        own = self.in_use(local.model, state, local.layout)
        change, _ = local.train(own, anchor=local.model, proximal_mu=local.settings["personal_lambda"])
        return Learning(update, loss, own + change)


DITTO: Final = Ditto("ditto", local="ditto", settings=("personal_lambda",), keeps=MODEL, private=False, stacked=False)
