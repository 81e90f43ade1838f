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
from sovfed.clients.policy import Policy
from sovfed.clients.training import LocalTraining
from sovfed.federation.config import DataConfig
from sovfed.federation.messages import EvaluateRequest, Sums, Vector
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import bounds, get_task, public_scale

if TYPE_CHECKING:
    import numpy.typing as npt

SITES: Final = ("0", "1", "2", "3")
POLICY: Final = Policy(allowed_tasks=("breast_cancer",), require_privacy=False)
FEATURE: Final = 0  # by whose largest value the patient is found
SPAN: Final = 20.0  # logits on either side that the bins resolve
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
        self._places = [
            LocalTraining(self.task, load_records(self.task, DataConfig(site=site)), site=site, device="cpu")
            for site in SITES
        ]

    def histogram(self, model: Vector, scale: Sums) -> npt.NDArray[np.float64]:
        """How many held-out records of the federation fall into each bin of the model's output, shape [bins]."""
        POLICY.check(
            EvaluateRequest(
                run="audit", round=1, task=self.task.name, model=model, scale=scale, begin=np.ones(1, np.uint8)
            )
        )
        self.asked += 1
        total: Sums = np.sum([place.evaluate(model, scale) for place in self._places], axis=0)
        bins = BinaryMetrics().bins
        found: npt.NDArray[np.float64] = total[-2 * bins : -bins] + total[-bins:]
        return found

    def truth(self) -> npt.NDArray[np.float32]:
        """The held-out patient with the largest `FEATURE`, shape [f]."""
        features = np.concatenate([place.records.features[place.records.test] for place in self._places])
        found: npt.NDArray[np.float32] = features[np.argmax(features[:, FEATURE])]
        return found


def audit_reading() -> Reading:
    """Read the patient with the largest radius out of sums over four institutions."""
    oracle = Oracle()
    low, high = bounds(oracle.task)
    spread = high - low
    truth = oracle.truth()
    found = np.zeros(len(low))
    found[FEATURE], gap = _largest(oracle, FEATURE, low, spread)
    for feature in range(len(low)):
        if feature == FEATURE:
            continue
        left, width = float(low[feature]), float(spread[feature])
        for _ in range(ZOOMS):
            left, width = _narrow(oracle, feature, left, width, found[FEATURE], gap, spread)
        found[feature] = left + width / 2
    error = float(np.max(np.abs(found - truth) / spread))
    others = len(low) - 1
    first = oracle.asked - ZOOMS * others
    return Reading(len(low), oracle.asked, error, 1 + max(0, POLICY.max_evaluations_per_run - first) // ZOOMS)


def _largest(oracle: Oracle, feature: int, low: Sums, spread: Sums) -> tuple[float, float]:
    """The largest value of `feature` among all records, and how far it is above the second, at least."""
    left, width, gap = float(low[feature]), float(spread[feature]), 0.0
    finest = 2.001 * SPAN * POLICY.least_spread * float(spread[feature]) / POLICY.max_model_value
    for _ in range(4):
        left, width = left - (max(width, finest) - width) / 2, max(width, finest)
        places = np.flatnonzero(_ask(oracle, {feature: (left, width)}))
        edges = left + width * _edges()
        left, width = float(edges[places[-1]]), float(edges[places[-1] + 1] - edges[places[-1]])
        if len(places) > 1:
            gap = max(gap, left - float(edges[places[-2] + 1]))
    return left + width / 2, gap


def _narrow(
    oracle: Oracle, feature: int, left: float, width: float, at: float, gap: float, spread: Sums
) -> tuple[float, float]:
    """The bin of [left, left + width] that the lifted record's `feature` is in; wider where the policy asks for it.

    The record must be lifted by more than any other's `feature` may add, and the policy bounds the lift.
    """
    slope = POLICY.max_model_value / (POLICY.least_spread * float(spread[FEATURE])) * 0.999
    room = slope * gap - CLEAR - SPAN
    if room <= 0:
        return left, width
    least = max(width, 2 * SPAN * float(spread[feature]) / room)
    left, width = left - (least - width) / 2, least
    slope = min(slope, (CLEAR + SPAN * (1 + 2 * float(spread[feature]) / width)) / gap)
    counts = _ask(oracle, {feature: (left, width)}, lift=(at, slope))
    edges = left + width * _edges()
    place = int(np.flatnonzero(counts)[-1])
    return float(edges[place]), float(edges[place + 1] - edges[place])


def _ask(
    oracle: Oracle, feature_range: dict[int, tuple[float, float]], lift: tuple[float, float] | None = None
) -> npt.NDArray[np.float64]:
    """Counts by bin of Σ (value − middle) · 2·SPAN / width, plus slope · (FEATURE − at) where `lift` is given."""
    low, high = bounds(oracle.task)
    scale, model = public_scale(oracle.task), np.zeros(oracle.task.parameters, np.float32)
    least = POLICY.least_spread * (high - low)
    for feature, (left, width) in feature_range.items():
        middle = left + width / 2
        scale[feature], scale[len(low) + feature] = np.clip(middle, low[feature], high[feature]), least[feature]
        model[feature] = 2 * SPAN / width * least[feature]
        model[-1] += 2 * SPAN / width * (scale[feature] - middle)
    if lift is not None:
        at, slope = lift
        scale[FEATURE], scale[len(low) + FEATURE] = at, least[FEATURE]
        model[FEATURE] = slope * least[FEATURE]
    return oracle.histogram(model, scale)


def _edges() -> npt.NDArray[np.float64]:
    """The bins' edges as shares of the range that is mapped to ±SPAN logits, shape [bins + 1]."""
    inner = np.arange(1, BinaryMetrics().bins) / BinaryMetrics().bins
    logits = 4.0 * np.log(inner / (1 - inner))
    return np.concatenate([[0.0], (logits / SPAN + 1) / 2, [1.0]])
