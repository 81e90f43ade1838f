"""Evaluation as sums over records, so that institutions' vectors can be added (and securely aggregated) before a
metric is computed. Undefined metrics (AUC when a class is absent, anything over no records) are left out.

A record moves no sum by more than a bounded amount: outputs and losses arrive cut to ±1e3, what is made of them is a
count, a probability, or cut to the same bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from sovfed.federation.metrics.classes import CALIBRATION_BINS, BinaryMetrics, ClassMetrics
from sovfed.federation.metrics.counts import Floats, Labels, auc
from sovfed.federation.metrics.labels import MultiLabelMetrics
from sovfed.federation.metrics.others import NoMetrics, TextMetrics, TokenMetrics
from sovfed.federation.metrics.regression import RegressionMetrics
from sovfed.federation.metrics.survival import SurvivalMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from sovfed.federation.messages import Sums

    Targets = npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]  # by column where there are several

__all__ = [
    "CALIBRATION_BINS",
    "SMALLER_IS_BETTER",
    "TOLD",
    "BinaryMetrics",
    "ClassMetrics",
    "Floats",
    "Labels",
    "Metric",
    "MultiLabelMetrics",
    "NoMetrics",
    "RegressionMetrics",
    "SurvivalMetrics",
    "TextMetrics",
    "TokenMetrics",
    "auc",
    "gain",
]


class Metric(Protocol):
    """A task's metrics: how records become sums, and what the added sums mean."""

    @property
    def size(self) -> int:
        """Length k of the evaluation vector."""

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics that `summarise` may give, the most telling first."""

    @property
    def smaller(self) -> frozenset[str]:
        """Those of `names` that are better when they are smaller."""

    def sums(self, outputs: Floats, targets: Any, losses: Floats) -> Sums:
        """The evaluation vector, shape [k], of outputs [n, …], `Targets` and the losses of the records [n].

        Outputs and targets are as the model and the loss have them: a number to be learnt is scaled by the run's scale.
        """

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        """The metrics of added evaluation vectors, by name.

        `unit` is what 1 of a scaled target is in the target's own unit (`unit_of`).
        """


_OURS: Final[tuple[Metric, ...]] = (
    BinaryMetrics(), ClassMetrics(2), TextMetrics(), TokenMetrics(), RegressionMetrics(), MultiLabelMetrics(("",)),
    SurvivalMetrics("", "", (0.0, 1.0)),
)  # fmt: skip
SMALLER_IS_BETTER: Final = frozenset().union(*(metric.smaller for metric in _OURS))  # where no task says more
TOLD: Final = ("auc", "accuracy", "bits_per_byte", "r2", "mae", "f1", "concordance")  # of a round, in its one line


def gain(metric: str, value: float, over: float, metrics: Metric | None = None) -> float:
    """By how much `value` of `metric` is better than another, `over`: below 0 if it is worse.

    `metrics`, the task's own, say which way a metric goes; without them it goes as ours of that name do.
    """
    smaller = SMALLER_IS_BETTER if metrics is None else metrics.smaller
    return over - value if metric in smaller else value - over
