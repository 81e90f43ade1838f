"""Client sampling: a round asks some of the connected institutions, drawn anew each time from (seed, round)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.messages import PrivateRequest, SumRequest, TrainRequest

if TYPE_CHECKING:
    from sovfed.server.rounds.aggregation import Aggregation, Total

log = logging.getLogger(__name__)
MOST: Final = 100_000


class Sampled:
    """Trains on `share` of the institutions, at least `least`; profile and final evaluation are of all.

    No sum is of more than `most`: where more are connected, each is of so many that are drawn.

    Who refused in a round is drawn no more in it while there are enough others, unless shares of the sum were asked
    for: secure aggregation then repeats it over the same institutions or not at all. The draw is no secret, so it
    hides nobody, and no privacy is claimed for it. Where policies refuse sums over almost the same institutions (their
    default), samples of a run without privacy that overlap much differ by too few: the run then keeps to one sample.
    """

    def __init__(self, inner: Aggregation, share: float, least: int, seed: int, most: int = MOST) -> None:
        self._inner, self._share, self._least, self._seed, self._most = inner, share, least, seed, most
        self._round, self._refused = 0, set[int]()
        self._told = False

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`, of a sample of `nodes`."""
        if not isinstance(request, TrainRequest | PrivateRequest):
            return self._inner.collect(request, self._some(0, nodes, self._most), width)
        if request.round != self._round:
            self._round, self._refused = request.round, set()
        drawn = self.draw(request.round, nodes)
        total = self._inner.collect(request, drawn, width)
        if not self._told and not set(total.participants) <= set(drawn):
            log.warning("round %d: policies refuse sums over another sample: the same one trains on", request.round)
            self._told = True
        if not total.missing:
            self._refused |= total.refused.keys()
        return total

    def draw(self, number: int, nodes: Sequence[int]) -> list[int]:
        """The sample of round `number`, in the order of `nodes`."""
        size = min(max(self._least, math.ceil(self._share * len(nodes))), self._most)
        willing = [node for node in nodes if node not in self._refused]
        return self._some(number, willing if len(willing) >= size else nodes, size)

    def _some(self, number: int, pool: Sequence[int], size: int) -> list[int]:
        if len(pool) <= size:
            return list(pool)
        indices = np.random.default_rng([self._seed, 3, number]).choice(len(pool), size, replace=False)
        return [pool[index] for index in np.sort(indices)]

    def describe(self) -> dict[str, Any]:
        return self._inner.describe() | ({"sample": self._share} if self._share < 1 else {})
