"""What several kinds of metrics count with: histograms of scores, and the area that two of them give."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]  # of float32 or float64
Labels = npt.NDArray[np.int64]
LARGEST: Final = 1e3  # by which a record moves a sum at most
FARTHEST: Final = 1e3  # scores are told apart so far from 0
FINE: Final = 0.5  # bins are about equally wide up to here, and grow with the score beyond


def auc(negatives: Floats, positives: Floats) -> float | None:
    """Area under the ROC curve of two score histograms, shape [bins] in ascending score; None if one is empty.

    The Mann-Whitney statistic, with pairs in one bin counted half (Hanley and McNeil 1982).
    """
    pairs = negatives.sum() * positives.sum()
    if pairs <= 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + 0.5 * negatives)).sum() / pairs)


def mean_auc(negatives: Floats, positives: Floats) -> dict[str, float]:
    """{"auc": mean area} over histograms [classes, bins]; classes without one are left out, {} if that is all."""
    areas = [area for pair in zip(negatives, positives, strict=True) if (area := auc(*pair)) is not None]
    return {"auc": float(np.mean(areas))} if areas else {}


def sigmoid(logit: Floats) -> Floats:
    """1 / (1 + exp(−logit)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * logit))


def binned(score: Floats, bins: int) -> npt.NDArray[np.int64]:
    """The bin 0 … bins − 1 of each score, by arsinh(score / FINE): near 0 as far apart, beyond by their ratio."""
    place: Floats = np.arcsinh(np.clip(score, -FARTHEST, FARTHEST) / FINE) / np.arcsinh(FARTHEST / FINE)
    bin_of: npt.NDArray[np.int64] = np.minimum((0.5 * (place + 1.0) * bins).astype(np.int64), bins - 1)
    return bin_of


def middles(bins: int) -> Floats:
    """The score in the middle of each bin of `binned` [bins]."""
    place = 2.0 * (np.arange(bins) + 0.5) / bins - 1.0
    return FINE * np.sinh(np.arcsinh(FARTHEST / FINE) * place)
