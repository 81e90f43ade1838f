"""What a crafted model still reads out of proper sums without privacy, under the default bounds of `policy.yaml`.

The agency evaluates linear models of its own making on everybody's held-out records. Each opened sum is a histogram of
outputs: the first few find the record that is extreme in one feature, the others lift it above all the rest and turn
one of its features at a time into a bin. No rule is broken: this is what a sum without privacy is. The audit measures
it, so that the documents can say how little the bounds help and what does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.data import load_records
from sovfed.clients.home.policy import Policy
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import PolicyError
from sovfed.federation.messages import EvaluateRequest, Sums, Vector
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.metrics.counts import logits_at
from sovfed.federation.tasks.columns import NUMBERS
from sovfed.federation.tasks.registry import get_task

if TYPE_CHECKING:
    import numpy.typing as npt

SITES: Final = ("0", "1", "2", "3")
POLICY: Final = Policy(allowed_tasks=("breast_cancer",), require_privacy=False)
FEATURE: Final = 0  # by whose largest value the patient is found
LOW, RANGE = -1.0, 2.0  # of a feature in u, where its declared bounds are −1 and 1
SPAN: Final = 20.0  # logits on either side that are looked at
ZOOMS: Final = 2  # sums for one feature
CLEAR: Final = 60.0  # logits below which every other record has to stay


@dataclass(frozen=True)
class Reading:
    """How many of the patient's features were read, in how many sums, and the largest error as a share of the range."""

    features: int
    sums: int
    error: float
    per_evaluations_of_a_run: int  # features that `max_evaluations_per_run` sums would read


class Oracle:
    """The federation's opened evaluation sums, for requests that the policy lets pass."""

    def __init__(self) -> None:
        self.task = get_task("breast_cancer")
        self.asked = 0
        self._sites = [
            LocalTraining(self.task, load_records(self.task, DataConfig(site=site)), site=site, device="cpu")
            for site in SITES
        ]

    def histogram(self, model: Vector, scale: Sums) -> npt.NDArray[np.float64]:
        """How many held-out records of the federation fall into each bin of the model's output, shape [bins]."""
        POLICY.check(
            EvaluateRequest(
                run="audit", round=1, task=self.task.name, model=model, scale=scale, begin=np.ones(1, np.uint8),
                digest=self.task.digest,
            )
        )  # fmt: skip
        if reason := self.task.transform.admits(scale, POLICY.least_spread):  # as the trainer does
            raise PolicyError(reason)
        self.asked += 1
        total: Sums = np.sum([site.evaluate(model, scale) for site in self._sites], axis=0)
        bins = BinaryMetrics().bins
        counts: npt.NDArray[np.float64] = total[-2 * bins : -bins] + total[-bins:]
        return counts

    def truth(self) -> npt.NDArray[np.float64]:
        """The held-out patient with the largest `FEATURE`, in u, shape [f]."""
        tables = [site.records.take(site.records.test)[NUMBERS] for site in self._sites]
        low, high = np.array([column.bounds for column in self.task.schema.numbers]).T
        u = (np.concatenate(tables) - (low + high) / 2) / ((high - low) / 2)
        patient: npt.NDArray[np.float64] = u[np.argmax(u[:, FEATURE])]
        return patient


def audit_reading() -> Reading:
    """Read the patient with the largest radius out of sums over four institutions."""
    oracle = Oracle()
    truth = oracle.truth()
    recovered = np.zeros(len(truth))
    recovered[FEATURE], gap = _largest(oracle, FEATURE)
    for feature in range(len(truth)):
        if feature == FEATURE:
            continue
        start, width = LOW, RANGE
        for _ in range(ZOOMS):
            start, width = _narrow(oracle, feature, start, width, recovered[FEATURE], gap)
        recovered[feature] = start + width / 2
    error = float(np.max(np.abs(recovered - truth) / RANGE))
    first = oracle.asked - ZOOMS * (len(truth) - 1)
    return Reading(len(truth), oracle.asked, error, 1 + max(0, POLICY.max_evaluations_per_run - first) // ZOOMS)


def _largest(oracle: Oracle, feature: int) -> tuple[float, float]:
    """The largest value of `feature` among all records, and how far it is above the second, at least."""
    start, width, gap = LOW, RANGE, 0.0
    finest = 2.001 * SPAN * POLICY.least_spread * RANGE / POLICY.max_model_value
    for _ in range(4):
        start, width = start - (max(width, finest) - width) / 2, max(width, finest)
        places = np.flatnonzero(_ask(oracle, {feature: (start, width)}))
        edges = start + width * _edges()
        start, width = float(edges[places[-1]]), float(edges[places[-1] + 1] - edges[places[-1]])
        if len(places) > 1:
            gap = max(gap, start - float(edges[places[-2] + 1]))
    return start + width / 2, gap


def _narrow(oracle: Oracle, feature: int, start: float, width: float, at: float, gap: float) -> tuple[float, float]:
    """The bin of [start, start + width] that the lifted record's `feature` is in; wider where the policy asks for it.

    The record must be lifted by more than any other's `feature` may add, and the policy bounds the lift.
    """
    slope = POLICY.max_model_value / (POLICY.least_spread * RANGE) * 0.999
    room = slope * gap - CLEAR - SPAN
    if room <= 0:
        return start, width
    least = max(width, 2 * SPAN * RANGE / room)
    start, width = start - (least - width) / 2, least
    slope = min(slope, (CLEAR + SPAN * (1 + 2 * RANGE / width)) / gap)
    counts = _ask(oracle, {feature: (start, width)}, lift=(at, slope))
    edges = start + width * _edges()
    index = int(np.flatnonzero(counts)[-1])
    return float(edges[index]), float(edges[index + 1] - edges[index])


def _ask(
    oracle: Oracle, feature_range: dict[int, tuple[float, float]], lift: tuple[float, float] | None = None
) -> npt.NDArray[np.float64]:
    """Counts by bin of Σ (value − middle) · 2·SPAN / width, plus slope · (FEATURE − at) where `lift` is given."""
    size, least = oracle.task.transform.size, POLICY.least_spread * RANGE
    scale, model = oracle.task.transform.public_scale.copy(), np.zeros(oracle.task.parameters, np.float32)
    for feature, (start, width) in feature_range.items():
        middle = start + width / 2
        scale[feature], scale[size + feature] = np.clip(middle, LOW, LOW + RANGE), least
        model[feature] = 2 * SPAN / width * least
        model[-1] += 2 * SPAN / width * (scale[feature] - middle)
    if lift is not None:
        at, slope = lift
        scale[FEATURE], scale[size + FEATURE] = at, least
        model[FEATURE] = slope * least
    return oracle.histogram(model, scale)


def _edges() -> npt.NDArray[np.float64]:
    """The bins' edges as shares of the range that is mapped to ±SPAN logits, shape [bins + 1]; most lie within it."""
    bins = BinaryMetrics().bins
    edges: npt.NDArray[np.float64] = (logits_at(np.arange(bins + 1), bins) / SPAN + 1) / 2
    return edges
