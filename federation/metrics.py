"""Evaluation as sums over records, so that institutions' vectors can be added (and securely aggregated) before a
metric is computed. Undefined metrics (AUC when a class is absent, anything over no records) are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums

Floats = npt.NDArray[Any]  # of float32 or float64
Labels = npt.NDArray[np.int64]
CALIBRATION_BINS: Final = 15  # Guo et al. 2017, arXiv:1706.04599
_SQUASH: Final = 4.0  # scores are binned by sigmoid(logit / 4): fine in the middle, resolved to |logit| of about 30
TOLD: Final = ("auc", "accuracy", "bits_per_byte")  # of a round, where there is one line for it
SMALLER_IS_BETTER: Final = ("loss", "brier", "ece", "bits_per_byte")
_TOTALS: Final = 4  # the vectors of classifiers begin with [records, Σ loss, correct, Σ squared error]


class Metric(Protocol):
    """A task's metrics: how records become sums, and what the added sums mean."""

    @property
    def size(self) -> int:
        """Length k of the evaluation vector."""

    def sums(self, logits: Floats, labels: Any, losses: Floats) -> Sums:
        """The evaluation vector, shape [k], of logits [n, outputs], labels [n] and per-record losses [n]."""

    def summarise(self, sums: Sums) -> dict[str, float]:
        """The metrics of added evaluation vectors, by name."""


def gain(metric: str, value: float, over: float) -> float:
    """By how much `value` of `metric` is better than another, `over`: below 0 if it is worse."""
    return over - value if metric in SMALLER_IS_BETTER else value - over


@dataclass(frozen=True)
class NoMetrics:
    """[records] and no metric: for a task that measures links, not models."""

    size: int = 1

    def sums(self, logits: Floats, labels: Labels, losses: Floats) -> Sums:
        return np.array([float(len(labels))])

    def summarise(self, sums: Sums) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class BinaryMetrics:
    """AUC, accuracy, log loss, Brier score and calibration error of one logit per record.

    The vector is [records, Σ loss, correct, Σ (p − y)², histogram of negatives [bins], histogram of positives [bins]].
    Every bin is a count that a crafted model can put a question to, so there are as few as the AUC bears: over 400
    records whose logits spread by 0.5 (1, 3) it is off by up to 0.004 (0.002, 0.001); with 64 bins by 0.013 (0.004,
    0.002), with 1,024 by 0.0005.
    """

    bins: int = 128

    @property
    def size(self) -> int:
        return _TOTALS + 2 * self.bins

    def sums(self, logits: Floats, labels: Labels, losses: Floats) -> Sums:
        logit = logits[:, 0].astype(np.float64)
        brier = np.square(_sigmoid(logit) - labels).sum()
        totals = [len(labels), losses.sum(dtype=np.float64), ((logit > 0) == (labels == 1)).sum(), brier]
        bins = _bin(logit, self.bins)
        negatives, positives = (np.bincount(bins[labels == label], minlength=self.bins) for label in (0, 1))
        return np.concatenate([totals, negatives, positives]).astype(np.float64)

    def summarise(self, sums: Sums) -> dict[str, float]:
        histograms = sums[_TOTALS:].reshape(2, self.bins)
        centres = (np.arange(self.bins) + 0.5) / self.bins
        probability = _sigmoid(_SQUASH * np.log(centres / (1.0 - centres)))
        which = np.minimum((probability * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        cells = np.stack([histograms.sum(0), histograms.sum(0) * probability, histograms[1]])
        calibration = np.array([np.bincount(which, cell, CALIBRATION_BINS) for cell in cells], dtype=np.float64)
        return _common(sums, histograms[None, 0], histograms[None, 1], calibration)


@dataclass(frozen=True)
class ClassMetrics:
    """Macro one-vs-rest AUC, accuracy, log loss, Brier score and top-label calibration error of `classes` logits.

    The vector is [records, Σ loss, correct, Σ |p − y|², calibration [3, 15], negatives [classes, bins], positives].
    """

    classes: int
    bins: int = 128

    @property
    def size(self) -> int:
        return _TOTALS + 3 * CALIBRATION_BINS + 2 * self.classes * self.bins

    def sums(self, logits: Floats, labels: Labels, losses: Floats) -> Sums:
        probability = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        truth = labels[:, None] == self._classes
        chosen = probability.argmax(axis=1)
        correct, top = chosen == labels, probability[np.arange(len(labels)), chosen]
        which = np.minimum((top * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1) + _TOTALS
        brier = np.square(probability - truth).sum()
        rest = np.maximum(1.0 - probability, 1e-15)
        bins = (
            _bin(np.log(np.maximum(probability, 1e-15) / rest), self.bins)
            + self._places[truth.astype(np.intp), self._classes]
        )
        # One count for everything: each record falls into three cells of the calibration and one of every class.
        cells = np.concatenate([which, which + CALIBRATION_BINS, which + 2 * CALIBRATION_BINS, bins.ravel()])
        weights = np.concatenate([np.ones_like(top), top, correct, np.ones(bins.size)])
        sums: Sums = np.asarray(np.bincount(cells, weights, self.size), np.float64)
        sums[:_TOTALS] = len(labels), losses.sum(dtype=np.float64), correct.sum(), brier
        return sums

    @cached_property
    def _classes(self) -> npt.NDArray[np.int64]:
        return np.arange(self.classes)

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        """Where the histograms of negatives and positives of each class begin, shape [2, classes]."""
        places = np.arange(2 * self.classes).reshape(2, self.classes) * self.bins
        return places + _TOTALS + 3 * CALIBRATION_BINS

    def summarise(self, sums: Sums) -> dict[str, float]:
        calibration, histograms = np.split(sums[_TOTALS:], [3 * CALIBRATION_BINS])
        negatives, positives = histograms.reshape(2, self.classes, self.bins)
        return _common(sums, negatives, positives, calibration.reshape(3, CALIBRATION_BINS))


@dataclass(frozen=True)
class TextMetrics:
    """Bits per byte, and the mean loss of a byte in nats, of a model whose outputs are log p of each byte of a window.

    The first `labels` bytes of a window are given, not predicted. The vector is [windows, Σ −log p, bytes].
    """

    size: int = 3

    def sums(self, logits: Floats, labels: Labels, losses: Floats) -> Sums:
        counted = logits.shape[1] - labels
        return np.array([len(labels), (losses * counted).sum(dtype=np.float64), counted.sum()], dtype=np.float64)

    def summarise(self, sums: Sums) -> dict[str, float]:
        _, nats, count = (float(total) for total in sums)
        return {"bits_per_byte": nats / count / math.log(2.0), "loss": nats / count} if count > 0 else {}


def auc(negatives: Floats, positives: Floats) -> float | None:
    """Area under the ROC curve of two score histograms, shape [bins] in ascending score; None if one is empty.

    The Mann-Whitney statistic, with pairs in one bin counted half (Hanley and McNeil 1982).
    """
    pairs = negatives.sum() * positives.sum()
    if pairs <= 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / pairs)


def _common(sums: Sums, negatives: Floats, positives: Floats, calibration: Floats) -> dict[str, float]:
    """The metrics; histograms of shape [classes, bins], calibration = [records, Σ confidence, correct] by bin."""
    count, loss, correct, brier = (float(total) for total in sums[:_TOTALS])
    if count <= 0:
        return {}
    found = {"accuracy": correct / count, "loss": loss / count, "brier": brier / count}
    found["ece"] = float(np.abs(calibration[1] - calibration[2]).sum() / count)
    areas = [area for pair in zip(negatives, positives, strict=True) if (area := auc(*pair)) is not None]
    return {"auc": float(np.mean(areas)), **found} if areas else found


def _sigmoid(logit: Floats) -> Floats:
    """1 / (1 + exp(−logit)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logit))


def _bin(logit: Floats, bins: int) -> npt.NDArray[np.int64]:
    return np.minimum((_sigmoid(logit / _SQUASH) * bins).astype(np.int64), bins - 1)
