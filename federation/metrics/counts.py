"""What several kinds of metrics count with: histograms of scores, and the area that two of them give."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]  # of float32 or float64
Labels = npt.NDArray[np.int64]
LARGEST: Final = 1e3  # by which a record moves a sum at most
SQUASH: Final = 4.0  # scores are binned by sigmoid(logit / 4): fine in the middle, resolved to |logit| of about 30


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


def binned(logit: Floats, bins: int, squash: float = SQUASH) -> npt.NDArray[np.int64]:
    """The bin 0 … bins − 1 of each score, by sigmoid(logit / squash)."""
    return np.minimum((sigmoid(logit / squash) * bins).astype(np.int64), bins - 1)
