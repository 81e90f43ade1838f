"""How sure added metrics are: 95 % intervals, where the sums tell the spread of single records.

They are of records drawn at random from a population like that of all institutions together; not of institutions that
differ, and not of persons with many records.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.metrics.classes import BinaryMetrics, ClassMetrics
from sovfed.federation.metrics.regression import RegressionMetrics

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums
    from sovfed.federation.metrics import Metric
    from sovfed.federation.metrics.counts import Floats

Z: Final = 1.959964
OF_RECORDS: Final = "The 95 % intervals are of records drawn at random, not of other institutions"
Interval = tuple[float, float]


def intervals(metrics: Metric, sums: Sums, unit: float = 1.0) -> dict[str, Interval]:
    """By name, the interval of each metric of `sums` that has one here: accuracy, AUC, mean absolute error."""
    count = float(sums[0])
    if count < 1:
        return {}
    if isinstance(metrics, RegressionMetrics):
        mean, square = float(sums[2]) / count, float(sums[3]) / count
        half = Z * math.sqrt(max(square - mean * mean, 0.0) / count)
        return {"mae": (max(0.0, unit * (mean - half)), unit * (mean + half))}
    if not isinstance(metrics, BinaryMetrics | ClassMetrics):
        return {}
    classes = metrics.classes if isinstance(metrics, ClassMetrics) else 1
    negatives, positives = sums[-2 * classes * metrics.bins :].reshape(2, classes, metrics.bins)
    told = {"accuracy": wilson(float(sums[2]), count)}
    area = _mean_area(negatives, positives)
    return told if area is None else told | {"auc": area}


def wilson(successes: float, count: float) -> Interval:
    """The interval of a share. Source: Wilson 1927, as in Brown, Cai and DasGupta 2001, equation 4."""
    share, square = min(max(successes / count, 0.0), 1.0), Z**2  # an institution may have sent any number
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _mean_area(negatives: Floats, positives: Floats) -> Interval | None:
    """The interval of the mean AUC of histograms [classes, bins]; of several classes a little too wide.

    Their areas are of the same records, so the standard errors are averaged as if they moved together.
    """
    areas = [area for pair in zip(negatives, positives, strict=True) if (area := area_and_error(*pair)) is not None]
    if not areas:
        return None
    mean, error = np.mean(areas, axis=0)
    return max(0.0, float(mean - Z * error)), min(1.0, float(mean + Z * error))


def area_and_error(negatives: Floats, positives: Floats) -> Interval | None:
    """The AUC of two histograms and its standard error; None with fewer than two records of either.

    Source: DeLong, DeLong and Clarke-Pearson 1988, equations 1 to 6, with records of one bin counted half.
    """
    negatives, positives = np.maximum(negatives, 0.0), np.maximum(positives, 0.0)
    n, m = float(negatives.sum()), float(positives.sum())
    if n < 2 or m < 2:
        return None
    below = (np.cumsum(negatives) - negatives + negatives / 2) / n  # of a positive in each bin
    above = 1 - (np.cumsum(positives) - positives + positives / 2) / m  # of a negative in each bin
    area = float((positives * below).sum() / m)
    by_positive = float((positives * (below - area) ** 2).sum()) / (m - 1) / m
    by_negative = float((negatives * (above - area) ** 2).sum()) / (n - 1) / n
    return area, math.sqrt(by_positive + by_negative)
