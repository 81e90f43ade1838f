"""Metrics of survival in intervals: who falls first, and how well each one's course was foretold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.metrics.counts import Floats, Labels, sigmoid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.messages import Sums

_TOTALS: Final = 2
_SQUASH: Final = 2.0  # log cumulative hazards lie closer together than logits
_LEAST: Final = 1e-300
CELLS: Final = 40  # of time, at least: pairs in one cell cannot be compared, which makes a concordance look better


@dataclass(frozen=True)
class SurvivalMetrics:
    """Concordance, integrated Brier score and −log likelihood of K logits a record: hazards between `edges` [K + 1].

    The vector is [records, Σ loss, censored [cells + 1, bins], fallen [cells + 1, bins], Σ S² of those fallen in
    interval c at the end of interval k [K, K], Σ (1 − S)² of those alive there [K]]: counts by time (each interval is
    cut into equal cells, the last holds what lies at or behind the last edge) and by risk, the logarithm of the
    cumulative hazard over all intervals.

    Concordance is Harrell's over pairs of different cells, of which the earlier is an event; risks in one bin count
    half. For 1,500 exponential times it lies 0.005 above that of all pairs with 40 cells, 0.01 with 20, 0.02 with 10,
    and is off by up to 0.0025 for 32 bins. The Brier score is Graf's (1999), integrated over the edges, weighted by the
    Kaplan-Meier estimate of being uncensored, of the same counts.
    """

    time: str
    event: str
    edges: tuple[float, ...]
    bins: int = 32
    names: ClassVar[tuple[str, ...]] = ("concordance", "ibs", "loss")
    smaller: ClassVar[frozenset[str]] = frozenset({"ibs", "loss"})

    @property
    def intervals(self) -> int:
        return len(self.edges) - 1

    @property
    def size(self) -> int:
        return _TOTALS + self._counts + self.intervals**2 + self.intervals

    @property
    def _parts(self) -> int:
        """Cells of an interval."""
        return -(-CELLS // self.intervals)

    @property
    def _cells(self) -> int:
        return self.intervals * self._parts + 1

    @property
    def _counts(self) -> int:
        return 2 * self._cells * self.bins

    def sums(self, outputs: Floats, targets: Mapping[str, npt.NDArray[Any]], losses: Floats) -> Sums:
        cell = np.searchsorted(self._grid[1:], targets[self.time].astype(np.float64), side="right")
        fallen = targets[self.event] > 0
        hazards = np.cumsum(np.logaddexp(0.0, outputs.astype(np.float64)), 1)  # −log S at the end of each interval
        share = sigmoid(np.log(np.maximum(hazards[:, -1], _LEAST)) / _SQUASH)
        risk = np.minimum((share * self.bins).astype(np.int64), self.bins - 1)
        counts = np.bincount((fallen * self._cells + cell) * self.bins + risk, minlength=self._counts)
        totals = [len(cell), losses.sum(dtype=np.float64)]
        squares = self._squares(np.exp(-hazards), cell // self._parts, fallen)
        return np.concatenate([totals, counts, squares]).astype(np.float64)

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        totals, counts, squares = np.split(sums, [_TOTALS, _TOTALS + self._counts])
        if totals[0] <= 0:
            return {}
        censored, fallen = counts.reshape(2, self._cells, self.bins)
        metrics = {"loss": float(totals[1] / totals[0])}
        censored_by_interval, fallen_by_interval = (
            np.add.reduceat(table.sum(1), self._starts) for table in (censored, fallen)
        )
        ibs = self._brier(censored_by_interval, fallen_by_interval, squares)
        return _concordance(censored, fallen) | ({} if ibs is None else {"ibs": ibs}) | metrics

    @cached_property
    def _edges(self) -> Floats:
        return np.array(self.edges, np.float32).astype(np.float64)  # as records are stored

    @cached_property
    def _grid(self) -> Floats:
        """The edges of the cells."""
        places = np.arange(self._cells) / self._parts
        return np.interp(places, np.arange(self.intervals + 1), self._edges)

    @property
    def _starts(self) -> Labels:
        """The first cell of each interval, and of what lies behind the last."""
        return np.arange(0, self._cells, self._parts)

    def _squares(self, survival: Floats, when: Labels, fallen: npt.NDArray[np.bool_]) -> Floats:
        """[Σ S² [K, K], Σ (1 − S)² [K]] of survival [n, K]."""
        dead = np.zeros((self.intervals + 1, self.intervals))
        np.add.at(dead, when[fallen], np.square(survival[fallen]))
        alive = when[:, None] > np.arange(self.intervals)
        return np.concatenate([np.triu(dead[:-1]).ravel(), (np.square(1.0 - survival) * alive).sum(0)])

    def _brier(self, censored: Floats, fallen: Floats, squares: Floats) -> float | None:
        """The integrated Brier score, up to the last edge before which not everybody is censored; None without one."""
        dead, alive = np.split(squares, [self.intervals**2])
        count, at_risk = censored.sum() + fallen.sum(), np.cumsum((censored + fallen)[::-1])[::-1]
        staying = np.maximum(at_risk - fallen, 1e-12)
        after = np.cumprod(1.0 - np.minimum(censored / staying, 1.0))[:-1]  # P(uncensored) at the end of each interval
        before = np.concatenate([[1.0], after[:-1]])
        observed = int((after > 0).sum())  # edges, the first ones
        if not observed:
            return None
        fallen_by_edge = (dead.reshape(self.intervals, -1)[:observed, :observed] / before[:observed, None]).sum(0)
        by_edge, widths = fallen_by_edge + alive[:observed] / after[:observed], np.diff(self._edges)[:observed]
        return float((by_edge * widths).sum() / widths.sum() / count)


def _concordance(censored: Floats, fallen: Floats) -> dict[str, float]:
    """Of counts [intervals, bins], bins in ascending risk; {} where no pair can be compared."""
    everyone = censored + fallen
    later = np.cumsum(everyone[::-1], 0)[::-1] - everyone
    below = np.cumsum(later, 1) - later
    pairs = (fallen.sum(1) * later.sum(1)).sum()
    return {"concordance": float((fallen * (below + 0.5 * later)).sum() / pairs)} if pairs > 0 else {}
