"""Scores of single records in [0, 1], for sums with differential privacy: a record's own outputs decide its own alone.

What is cut is cut for all models alike, so that a better model has the better score wherever the cuts are not reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.metrics.classes import BinaryMetrics, ClassMetrics
from sovfed.federation.metrics.labels import MultiLabelMetrics
from sovfed.federation.metrics.regression import RegressionMetrics

if TYPE_CHECKING:
    from sovfed.federation.metrics import Metric
    from sovfed.federation.metrics.counts import Floats

ACCURACY: Final = "accuracy"
EXACT: Final = "exact_match"
MAE: Final = "mae"
LOSS: Final = "loss"
MOST: Final = {ACCURACY: 1.0, EXACT: 1.0, MAE: 4.0, LOSS: 4.0}  # at which a score is cut: deviations, and nats


def bounded_names(metrics: Metric) -> tuple[str, ...]:
    """The scores that records of a task with `metrics` have, the most telling first."""
    if isinstance(metrics, BinaryMetrics | ClassMetrics):
        return ACCURACY, LOSS
    if isinstance(metrics, MultiLabelMetrics):
        return EXACT, LOSS
    return (MAE, LOSS) if isinstance(metrics, RegressionMetrics) else (LOSS,)


def bounded_scores(metrics: Metric, outputs: Floats, targets: Any, losses: Floats) -> Floats:
    """The scores of records, shape [n, names], each a share of its `MOST`; arguments are as in `Metric.sums`."""
    values: dict[str, Floats] = {LOSS: losses}
    if isinstance(metrics, BinaryMetrics):
        values[ACCURACY] = (outputs[:, 0] > 0) == (targets == 1)
    elif isinstance(metrics, ClassMetrics):
        values[ACCURACY] = outputs.argmax(axis=1) == targets
    elif isinstance(metrics, MultiLabelMetrics):
        truth = np.stack([targets[name] for name in metrics.columns], 1) > 0
        values[EXACT] = (truth == (outputs > 0)).all(1)
    elif isinstance(metrics, RegressionMetrics):
        values[MAE] = np.abs(outputs[:, 0].astype(np.float64) - targets)
    names = bounded_names(metrics)
    shares = np.stack([np.asarray(values[name], np.float64) / MOST[name] for name in names], 1)
    return np.clip(np.nan_to_num(shares, nan=1.0), 0.0, 1.0)


def unit_of_score(name: str, unit: float) -> float:
    """What a share of 1 is in the metric's own unit; `unit` as in `Metric.summarise`."""
    return MOST[name] * (unit if name == MAE else 1.0)
