"""Metrics of several labels of a record, each of which it has or has not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.metrics.counts import binned, mean_auc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.messages import Sums
    from sovfed.federation.metrics.counts import Floats

_TOTALS: Final = 6


@dataclass(frozen=True)
class MultiLabelMetrics:
    """Macro AUC, micro F1, exact match and log loss of one logit for each of `columns`.

    The vector is [records, Σ loss, exact matches, true positives, false positives, false negatives (over all labels),
    negatives [labels, bins], positives [labels, bins]]; the AUC's resolution is that of `BinaryMetrics` with as many
    bins. A label is predicted where its logit is above 0.
    """

    columns: tuple[str, ...]
    bins: int = 128
    names: ClassVar[tuple[str, ...]] = ("auc", "f1", "exact_match", "loss")
    smaller: ClassVar[frozenset[str]] = frozenset({"loss"})

    @property
    def size(self) -> int:
        return _TOTALS + 2 * len(self.columns) * self.bins

    def sums(self, outputs: Floats, targets: Mapping[str, npt.NDArray[np.generic]], losses: Floats) -> Sums:
        truth = np.stack([targets[name] for name in self.columns], 1) > 0
        predicted = outputs > 0
        hits = [truth & predicted, ~truth & predicted, truth & ~predicted]
        totals = [
            len(truth),
            losses.sum(dtype=np.float64),
            (truth == predicted).all(1).sum(),
            *(hit.sum() for hit in hits),
        ]
        labels = len(self.columns)
        cells = binned(outputs.astype(np.float64), self.bins) + self.bins * (np.arange(labels) + labels * truth)
        counts = np.bincount(cells.ravel(), minlength=2 * labels * self.bins)
        return np.concatenate([totals, counts]).astype(np.float64)

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        count, loss, exact, true, wrong, missed = (float(entry) for entry in sums[:_TOTALS])
        if count <= 0:
            return {}
        metrics = mean_auc(*sums[_TOTALS:].reshape(2, len(self.columns), self.bins))
        if 2 * true + wrong + missed > 0:
            metrics["f1"] = 2 * true / (2 * true + wrong + missed)
        return {**metrics, "exact_match": exact / count, "loss": loss / count}
