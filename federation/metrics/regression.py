"""Metrics of a number that is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from sovfed.federation.metrics.counts import LARGEST

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums
    from sovfed.federation.metrics.counts import Floats

FURTHEST: Final = LARGEST**0.5  # deviations by which a prediction is wrong at most, as it is measured
SPREAD: Final = 1e-12  # a variance below it is none


@dataclass(frozen=True)
class RegressionMetrics:
    """R², mean absolute error and root mean squared error of one output a record; the errors in the target's own unit.

    The vector is [records, Σ loss, Σ |e|, Σ e², Σ y, Σ y²] of targets y as the run scales them (in deviations from the
    mean) and errors e in the same. That scale is one for all institutions, so the sums may be added; an error counts
    as at most √1000 deviations.
    """

    size: ClassVar[int] = 6
    names: ClassVar[tuple[str, ...]] = ("r2", "mae", "rmse", "loss")
    smaller: ClassVar[frozenset[str]] = frozenset({"mae", "rmse", "loss"})

    def sums(self, outputs: Floats, targets: Floats, losses: Floats) -> Sums:
        value = np.clip(targets.astype(np.float64), -LARGEST, LARGEST)
        error = np.clip(outputs[:, 0].astype(np.float64) - value, -FURTHEST, FURTHEST)
        value = np.clip(value, -FURTHEST, FURTHEST)
        entries = [np.ones_like(value), losses, np.abs(error), np.square(error), value, np.square(value)]
        return np.array([entry.sum(dtype=np.float64) for entry in entries])

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        count, loss, absolute, squares, total, spread = (float(entry) for entry in sums)
        if count <= 0:
            return {}
        metrics = {
            "mae": unit * absolute / count,
            "rmse": unit * max(0.0, squares / count) ** 0.5,
            "loss": loss / count,
        }
        around = spread - total * total / count
        return {"r2": 1.0 - squares / around, **metrics} if around > SPREAD * count else metrics
