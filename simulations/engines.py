"""Which engine answers a simulation's rounds, and which institutions a round samples: both are `Aggregation`s."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import write_private
from sovfed.federation.messages import ProfileRequest, SumRequest, TrainRequest
from sovfed.server.rounds.aggregation import Aggregation, Total
from sovfed.simulations.vectorised import VectorisedAggregation

log = logging.getLogger(__name__)
LEAST: Final = 8  # institutions a round, below which stacking cannot gain enough to be tried
FEW: Final = 16  # institutions that are tried both ways
SLOW_S: Final = 0.25  # of one institution, from which on fewer are tried
SHORT_S: Final = 0.5  # of a try, below which there is a second
TOLERANCE: Final = 1e-3  # of the mean update's largest value, between the two
GAIN: Final = 0.8  # of the deployed code's seconds, above which stacking is not worth it
CALM: Final = 0.01  # of the learning rate: at which steps do not blow rounding up


class Sampled:
    """Asks `cohort` institutions, drawn anew for every round from (seed, round): all if there are no more.

    The features' profile, which is taken once, is that of `profiled` institutions: a feature that hardly varies within
    one cohort would otherwise be blown up in all others.
    """

    def __init__(self, inner: Aggregation, cohort: int, profiled: int, seed: int) -> None:
        self._inner, self._cohort, self._profiled, self._seed = inner, cohort, max(cohort, profiled), seed

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`, with a sample of `nodes`; the features' profile is round 0."""
        number, count = (0, self._profiled) if isinstance(request, ProfileRequest) else (request.round, self._cohort)
        if len(nodes) > count:
            generator = np.random.default_rng([self._seed, 2, number])
            nodes = [nodes[index] for index in np.sort(generator.choice(len(nodes), count, replace=False))]
        return self._inner.collect(request, nodes, width)

    def describe(self) -> dict[str, Any]:
        return self._inner.describe()


class AutoEngine:
    """Tries a few institutions both ways in the first round, and goes on with the faster if the two agree.

    What was chosen is kept in a file, so that a run that resumes goes on with it whatever the machine does meanwhile.
    """

    def __init__(
        self, inprocess: Aggregation, vectorised: VectorisedAggregation | None, why: str = "", kept: Path | None = None
    ) -> None:
        """Without `vectorised` there is no choice, and `why` says the reason; `kept` is the file."""
        self._engines: dict[str, Aggregation] = {"inprocess": inprocess}
        if vectorised is not None:
            self._engines["vectorised"] = vectorised
        self._kept, self._why = kept, why or "no round was trained"
        self._chosen = "" if vectorised is not None else "inprocess"
        if kept is not None and kept.exists() and not self._chosen:
            self._chosen, self._why = _read(kept, self._engines)

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`."""
        if not self._chosen and isinstance(request, TrainRequest):
            self._chosen, self._why = self._choose(request, nodes, width)
            log.info("engine: %s: %s", self._chosen, self._why)
            if self._kept is not None:
                write_private(self._kept, json.dumps({"engine": self._chosen, "reason": self._why}).encode())
        return self._engines[self._chosen or "inprocess"].collect(request, nodes, width)

    def describe(self) -> dict[str, Any]:
        engine = self._chosen or "inprocess"
        return {**self._engines[engine].describe(), "engine": engine, "engine_reason": self._why}

    def _choose(self, request: TrainRequest, nodes: Sequence[int], width: int) -> tuple[str, str]:
        """The engine's name and the reason."""
        inprocess, vectorised = self._engines["inprocess"], self._engines["vectorised"]
        if len(nodes) < LEAST:
            return "inprocess", f"{len(nodes)} institutions a round are too few to stack"
        few = nodes[:LEAST]
        vectorised.collect(request, nodes[:1], width)
        inprocess.collect(request, few, width)  # what either loads and allocates once, in each worker
        _, eight = self._timed(inprocess, replace(request, seed=request.seed + 1), few, width)
        few = nodes[: FEW if eight < LEAST * SLOW_S else LEAST]
        inprocess_updates, seconds = self._timed(inprocess, request, few, width)
        stacked_updates, stacked_seconds = self._timed(vectorised, request, few, width)
        speed = f"{len(few)} institutions took {1e3 * seconds:.1f} ms, stacked {1e3 * stacked_seconds:.1f} ms"
        if not (gap := disagreement(inprocess_updates, stacked_updates)) <= TOLERANCE:
            # Many steps can blow rounding up; calm ones, in the same order on the same records, must agree even so.
            calm = replace(request, learning_rate=CALM * request.learning_rate)
            calm_gap = disagreement(inprocess.collect(calm, few, width), vectorised.collect(calm, few, width))
            if not (gap < float("inf") and calm_gap <= TOLERANCE):
                return "inprocess", f"stacked training differs by {gap:.1e} of the update; {speed}"
            speed += f" (updates differ by {gap:.1e}, at {CALM:g} of the learning rate by {calm_gap:.1e}: rounding)"
        if stacked_seconds > GAIN * seconds:
            return "inprocess", f"{speed}, so that arithmetic, not overhead, takes the time"
        return "vectorised", speed

    def _timed(
        self, engine: Aggregation, request: TrainRequest, nodes: Sequence[int], width: int
    ) -> tuple[Total, float]:
        """The total and the seconds; the better of two tries, where they are short and anything can get in between."""
        seconds = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            total = engine.collect(request, nodes, width)
            seconds = min(seconds, time.perf_counter() - start)
            if seconds > SHORT_S:
                break
        return total, seconds


def _read(kept: Path, engines: Mapping[str, Aggregation]) -> tuple[str, str]:
    """The engine and the reason in the file. Raises ConfigError."""
    try:
        choice = json.loads(kept.read_text(encoding="utf-8"))
        engine, reason = str(choice["engine"]), str(choice["reason"])
        engines[engine]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{kept} does not say which engine the run was begun with: name simulation.engine") from error
    return engine, reason


def disagreement(a: Total, b: Total) -> float:
    """The largest difference of two mean updates, in units of the largest value; infinite if one is missing."""
    if a.mean is None or b.mean is None or a.count != b.count:
        return float("inf")
    return float(np.abs(a.mean - b.mean).max() / max(float(np.abs(a.mean).max()), 1e-30))
