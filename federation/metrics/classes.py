"""Metrics of classifiers: one logit for two classes, or one for each class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.metrics.counts import Floats, Labels, binned, logits_at, mean_auc, sigmoid

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums

CALIBRATION_BINS: Final = 15  # Guo et al. 2017, arXiv:1706.04599
NAMES: Final = ("auc", "accuracy", "loss", "brier", "ece")
SMALLER: Final = frozenset({"loss", "brier", "ece"})
_TOTALS: Final = 4  # the vectors begin with [records, Σ loss, correct, Σ squared error]
# Where the three rows of the calibration begin in the vector of `ClassMetrics`.
_CALIBRATION: Final = _TOTALS + CALIBRATION_BINS * np.arange(3)[:, None]


@dataclass(frozen=True)
class BinaryMetrics:
    """AUC, accuracy, log loss, Brier score and calibration error of one logit per record.

    The vector is [records, Σ loss, correct, Σ (p − y)², histogram of negatives [bins], histogram of positives [bins]].
    Every bin is a count that a crafted model can put a question to, so there are as few as the AUC bears: over 400
    records whose logits spread by anything from 0.5 to 300 it is off by up to 0.004 (by 0.2, by up to 0.009), with 64
    bins by up to 0.007, with 1,024 by 0.0006.
    """

    bins: int = 128
    names: ClassVar[tuple[str, ...]] = NAMES
    smaller: ClassVar[frozenset[str]] = SMALLER

    @property
    def size(self) -> int:
        return _TOTALS + 2 * self.bins

    def sums(self, outputs: Floats, targets: Labels, losses: Floats) -> Sums:
        logit = outputs[:, 0].astype(np.float64)
        brier = np.square(sigmoid(logit) - targets).sum()
        totals = [len(targets), losses.sum(dtype=np.float64), ((logit > 0) == (targets == 1)).sum(), brier]
        bins = binned(logit, self.bins)
        negatives, positives = (np.bincount(bins[targets == label], minlength=self.bins) for label in (0, 1))
        return np.concatenate([totals, negatives, positives]).astype(np.float64)

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        histograms = sums[_TOTALS:].reshape(2, self.bins)
        probability = sigmoid(logits_at(np.arange(self.bins) + 0.5, self.bins))
        which = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        cells = np.stack([histograms.sum(0), histograms.sum(0) * probability, histograms[1]])
        calibration = np.array([np.bincount(which, cell, CALIBRATION_BINS) for cell in cells], dtype=np.float64)
        return _common(sums, histograms[None, 0], histograms[None, 1], calibration)


@dataclass(frozen=True)
class ClassMetrics:
    """Macro one-vs-rest AUC, accuracy, log loss, Brier score and top-label calibration error of `classes` outputs.

    The vector is [records, Σ loss, correct, Σ |p − y|², calibration [3, 15], negatives [classes, bins], positives].
    The Brier score is the sum over all classes (Brier 1950): of two, twice that of `BinaryMetrics`.
    """

    classes: int
    bins: int = 128
    names: ClassVar[tuple[str, ...]] = NAMES
    smaller: ClassVar[frozenset[str]] = SMALLER

    @property
    def size(self) -> int:
        return _TOTALS + 3 * CALIBRATION_BINS + 2 * self.classes * self.bins

    def sums(self, outputs: Floats, targets: Labels, losses: Floats) -> Sums:
        probability = np.exp(np.subtract(outputs, outputs.max(axis=1, keepdims=True), dtype=np.float64))
        probability /= probability.sum(axis=1, keepdims=True)
        truth = targets[:, None] == self._classes
        chosen = probability.argmax(axis=1)
        correct, top = chosen == targets, probability.max(axis=1)
        which = np.minimum((top * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        brier = np.square(probability - truth).sum()
        complement = np.maximum(1.0 - probability, 1e-15)
        bins = binned(np.log(np.maximum(probability, 1e-15) / complement), self.bins) + np.where(truth, *self._places)
        # One count for everything: each record falls into three cells of the calibration and one of every class.
        cells, count = np.concatenate([(which + _CALIBRATION).ravel(), bins.ravel()]), len(targets)
        weights = np.ones(cells.size)
        weights[count : 2 * count], weights[2 * count : 3 * count] = top, correct
        sums: Sums = np.asarray(np.bincount(cells, weights, self.size), np.float64)
        sums[:_TOTALS] = count, losses.sum(dtype=np.float64), correct.sum(), brier
        return sums

    @cached_property
    def _classes(self) -> npt.NDArray[np.int64]:
        return np.arange(self.classes)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """Where the histograms of positives and negatives of each class begin, shape [2, classes]."""
        places = np.arange(2 * self.classes).reshape(2, self.classes) * self.bins
        return places[::-1] + _TOTALS + 3 * CALIBRATION_BINS

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        calibration, histograms = np.split(sums[_TOTALS:], [3 * CALIBRATION_BINS])
        negatives, positives = histograms.reshape(2, self.classes, self.bins)
        return _common(sums, negatives, positives, calibration.reshape(3, CALIBRATION_BINS))


def _common(sums: Sums, negatives: Floats, positives: Floats, calibration: Floats) -> dict[str, float]:
    """The metrics; histograms of shape [classes, bins], calibration = [records, Σ confidence, correct] by bin."""
    count, loss, correct, brier = (float(total) for total in sums[:_TOTALS])
    if count <= 0:
        return {}
    metrics = {"accuracy": correct / count, "loss": loss / count, "brier": brier / count}
    metrics["ece"] = float(np.abs(calibration[1] - calibration[2]).sum() / count)
    return mean_auc(negatives, positives) | metrics
