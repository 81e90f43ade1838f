"""The algorithms, `strategy=NAME`: each one description with both its halves, in a file of this folder.

One that a package brings is a server's half alone, under what institutions do in one of these (`strategy.institution`).
"""

from __future__ import annotations

from typing import Final

from sovfed.federation.algorithms.algorithm import MODEL, VARIATE, Algorithm, Learning, LocalRound
from sovfed.federation.algorithms.at_the_server import ADAPTIVE, COMPARING, FEDSGD
from sovfed.federation.algorithms.ditto import DITTO
from sovfed.federation.algorithms.fednova import FEDNOVA
from sovfed.federation.algorithms.own_layers import FEDBN, FEDPER
from sovfed.federation.algorithms.scaffold import SCAFFOLD

__all__ = [
    "ALGORITHMS", "AT_INSTITUTIONS", "FEDAVG", "LOCAL", "MODEL", "VARIATE", "Algorithm", "Learning", "LocalRound",
]  # fmt: skip

FEDAVG: Final = Algorithm("fedavg")
FEDPROX: Final = Algorithm("fedprox", settings=("proximal_mu",))  # Li et al. 2020, arXiv:1812.06127: LocalPlan's pull
AT_INSTITUTIONS: Final = (FEDAVG, FEDPROX, FEDSGD, SCAFFOLD, FEDNOVA, FEDBN, FEDPER, DITTO)  # a half of their own there
ALGORITHMS: Final = {algorithm.name: algorithm for algorithm in (*AT_INSTITUTIONS, *ADAPTIVE, *COMPARING)}
LOCAL: Final = {FEDAVG.local: FEDAVG} | {
    algorithm.local: algorithm for algorithm in AT_INSTITUTIONS if algorithm.local != FEDAVG.local
}  # the institutions' halves, by what messages call them
