"""What several kinds of metrics count with: histograms of scores, and the area that two of them give."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[Any]  # of float32 or float64
Labels = npt.NDArray[np.int64]
LARGEST: Final = 1e3  # by which a record moves a sum at most
MIDDLE: Final = 0.5  # logits on either side of 0 over which bins are of about one width; beyond they widen as |logit|
FURTHEST: Final = 1e3  # logits beyond which scores are told apart no more
_SPREAD: Final = float(np.arcsinh(FURTHEST / MIDDLE))


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


def binned(logit: Floats, bins: int) -> npt.NDArray[np.int64]:
    """The bin 0 … bins − 1 of each score, by arsinh(logit / MIDDLE): models may be as sure as noise makes them."""
    within = np.arcsinh(np.minimum(np.maximum(logit, -FURTHEST), FURTHEST) / MIDDLE) / _SPREAD
    return np.minimum(((within + 1) / 2 * bins).astype(np.int64), bins - 1)


def logits_at(places: Floats, bins: int) -> Floats:
    """The logits at `places` of the axis of bins: k is where bin k begins, k + ½ its middle."""
    logits: Floats = MIDDLE * np.sinh(_SPREAD * (2 * np.asarray(places) / bins - 1))
    return logits
