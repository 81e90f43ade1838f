"""Which engine answers a simulation's rounds, and which institutions a round samples: both are `Aggregation`s."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from sovfed.federation.messages import ProfileRequest, SumRequest, TrainRequest
from sovfed.server.aggregation import Aggregation, Total
from sovfed.simulations.vectorised import VectorisedAggregation

log = logging.getLogger(__name__)
LEAST: Final = 8  # institutions a round, below which stacking cannot gain enough to be tried
FEW: Final = 16  # institutions that are tried both ways
SLOW_S: Final = 0.25  # of one institution, from which on fewer are tried
TOLERANCE: Final = 1e-3  # of the mean update's largest value, between the two
GAIN: Final = 0.8  # of the deployed code's seconds, above which stacking is not worth it
NUDGE: Final = 1e-6  # relative: some units in the last place of float32
CHAOS: Final = 10.0  # times what a nudge does, that stacking may


class Sampled:
    """Asks `cohort` institutions, drawn anew for every round from (seed, round): all if there are no more.

    The features' profile, which is taken once, is that of `profiled` institutions: a feature that hardly varies within
    one cohort would otherwise be blown up in all others.
    """

    def __init__(self, inner: Aggregation, cohort: int, profiled: int, seed: int) -> None:
        self._inner, self._cohort, self._profiled, self._seed = inner, cohort, max(cohort, profiled), seed

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`, with a sample of `nodes`; the features' profile is round 0."""
        number, asked = (0, self._profiled) if isinstance(request, ProfileRequest) else (request.round, self._cohort)
        if len(nodes) > asked:
            generator = np.random.default_rng([self._seed, 2, number])
            nodes = [nodes[place] for place in np.sort(generator.choice(len(nodes), asked, replace=False))]
        return self._inner.collect(request, nodes, width)

    def describe(self) -> dict[str, Any]:
        return self._inner.describe()


class AutoEngine:
    """Tries a few institutions both ways in the first round, and goes on with the faster if the two agree."""

    def __init__(self, inprocess: Aggregation, vectorised: VectorisedAggregation) -> None:
        self._inprocess, self._vectorised = inprocess, vectorised
        self._chosen: Aggregation | None = None
        self._why = "no round was trained"

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`."""
        if self._chosen is None and isinstance(request, TrainRequest):
            self._chosen, self._why = self._choose(request, nodes, width)
            log.info("engine: %s", self._why)
        return (self._chosen or self._inprocess).collect(request, nodes, width)

    def describe(self) -> dict[str, Any]:
        return {**(self._chosen or self._inprocess).describe(), "engine_reason": self._why}

    def _choose(self, request: TrainRequest, nodes: Sequence[int], width: int) -> tuple[Aggregation, str]:
        if len(nodes) < LEAST:
            return self._inprocess, f"inprocess: {len(nodes)} institutions a round are too few to stack"
        for engine in (self._vectorised, self._inprocess):
            engine.collect(request, nodes[:1], width)  # what either loads and allocates once
        _, one = self._timed(self._inprocess, replace(request, seed=request.seed + 1), nodes[:1], width)
        few = nodes[: FEW if one < SLOW_S else LEAST]
        ours, seconds = self._timed(self._inprocess, request, few, width)
        theirs, stacked_seconds = self._timed(self._vectorised, request, few, width)
        speed = f"{len(few)} institutions took {1e3 * seconds:.1f} ms, stacked {1e3 * stacked_seconds:.1f} ms"
        if (gap := disagreement(ours, theirs)) > TOLERANCE:
            # Many steps can blow rounding up: then a nudge of the model does to the deployed code what stacking does.
            nudged = replace(request, model=request.model * np.float32(1 + NUDGE))
            chaos = disagreement(ours, self._inprocess.collect(nudged, few, width))
            if not gap <= CHAOS * chaos < float("inf"):
                return self._inprocess, f"inprocess: stacked training differs by {gap:.1e} of the update; {speed}"
            speed += f" (updates differ by {gap:.1e}, as after a change of the model by {NUDGE:.0e}: {chaos:.1e})"
        if stacked_seconds > GAIN * seconds:
            return self._inprocess, f"inprocess: {speed}: arithmetic, not overhead, takes the time"
        return self._vectorised, f"vectorised: {speed}"

    def _timed(
        self, engine: Aggregation, request: TrainRequest, nodes: Sequence[int], width: int
    ) -> tuple[Total, float]:
        start = time.perf_counter()
        return engine.collect(request, nodes, width), time.perf_counter() - start


def disagreement(a: Total, b: Total) -> float:
    """The largest difference of two mean updates, in units of the largest value; infinite if one is missing."""
    if a.mean is None or b.mean is None or a.count != b.count:
        return float("inf")
    return float(np.abs(a.mean - b.mean).max() / max(float(np.abs(a.mean).max()), 1e-30))
