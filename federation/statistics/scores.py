"""What a model is worth, as a noised sum: its vector, what one person can add to it, and what is told of it.

The vector of one model is [persons] and, for each score s in [0, 1] of a record (`federation/metrics/bounded.py`),
Σ(s − ½). A person adds the mean of their held-out records' vectors.

Sensitivity. Of a record the first value is 1 and each other at most ½ in size; norms are convex, so a person's is at
most √(1 + scores/4), however many records they have. Adjacency: add or remove one person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ProtocolError
from sovfed.federation.metrics.bounded import bounded_names, unit_of_score
from sovfed.federation.metrics.intervals import Z
from sovfed.federation.statistics.question import MARGIN
from sovfed.federation.statistics.settings import LEAST

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.federation.messages import PrivateRequest
    from sovfed.federation.metrics import Metric

HALF: Final = 0.5


@dataclass(frozen=True)
class Scores:
    """The scores that are summed, by name."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, metrics: Metric) -> Scores:
        return cls(bounded_names(metrics))

    @property
    def size(self) -> int:
        """Length of the vector."""
        return 1 + len(self.names)

    @property
    def clip(self) -> float:
        """By how much one person can move the vector, in L2: the proof is at the head of this module."""
        return math.sqrt(1 + len(self.names) / 4) * (1 + MARGIN)


def scores_of(request: PrivateRequest, metrics: Metric) -> Scores:
    """The scores that `request` asks for. Raises ProtocolError unless its noise is for what one person can add.

    Everybody held out is counted, once for each model: a request that says otherwise would be charged too little.
    """
    scores = Scores.of(metrics)
    models = request.candidates.count(",") + 1
    asked = (request.mechanism, request.sampling_rate, request.rounds, request.steps, request.clip, request.scores)
    expected = ("distributed", 1.0, models, 1, scores.clip, scores.size)
    if asked != expected or request.statistics:
        raise ProtocolError(
            f"scores with (mechanism, sampling rate, rounds, steps, clip, values) {asked}, not {expected}"
        )
    return scores


def told_scores(scores: Scores, vector: npt.NDArray[Any], deviation: float, unit: float) -> dict[str, Any]:
    """What the noised `vector` (shape [size]) tells of a model, as plain values; `unit` as in `Metric.summarise`.

    `deviation` is that of the noise of each of its values. Nothing is told of fewer than `LEAST` persons, nor of so few
    that noise alone could be as many.
    """
    persons = float(vector[0])
    told: dict[str, Any] = {"records": None, "metrics": {}, "intervals": {}, "noise_deviation": deviation}
    if persons < max(LEAST, Z * deviation):
        return told
    told["records"] = round(persons)
    for name, total in zip(scores.names, vector[1:], strict=True):
        share, most = min(max(HALF + float(total) / persons, 0.0), 1.0), unit_of_score(name, unit)
        low, high = noised_interval(share, persons, deviation)
        told["metrics"][name], told["intervals"][name] = most * share, (most * low, most * high)
    return told


def noised_interval(share: float, persons: float, deviation: float) -> tuple[float, float]:
    """The 95 % interval of a mean of scores in [0, 1] over `persons`, of whom both sums have noise.

    Wilson's of the persons drawn (a score in [0, 1] spreads no more than yes and no with its mean: Bhatia and Davis
    2000), with the noise of Σ(s − ½) and of the persons, to first order, under the same root.
    """
    square = Z**2
    noise = deviation**2 * (1 + (share - HALF) ** 2) / persons**2
    middle = (share + square / (2 * persons)) / (1 + square / persons)
    drawn = share * (1 - share) / persons + square / (4 * persons**2)
    half = Z / (1 + square / persons) * math.sqrt(drawn + noise)
    return max(0.0, middle - half), min(1.0, middle + half)
