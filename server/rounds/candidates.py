"""Models that a run scores, as the agency has them in files: read, and named by their digests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import EvaluateRequest
from sovfed.federation.orders.candidates import MOST, candidate_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sovfed.federation.config import Config
    from sovfed.federation.messages import PrivateRequest, Sums, Vector
    from sovfed.federation.tasks import Task


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model to score. `sha256` is of its file, `digest` what the order names it by."""

    name: str
    model: Vector
    scale: Sums
    sha256: str
    digest: str


def read_candidates(config: Config, task: Task) -> Sequence[Candidate]:
    """The models that `config` names. Raises ConfigError if one is of another task, or is there twice; DataError."""
    from sovfed.federation.models.saved import load_model

    paths = config.task.candidates
    if len(paths) > MOST:
        raise ConfigError(f"{len(paths)} models, at most {MOST} are scored in a run")
    candidates = []
    for path in map(Path, paths):
        loaded = load_model(path)
        if loaded.task.digest != task.digest:
            raise ConfigError(
                f"{path}: a model of task '{loaded.task.name}' {loaded.task.digest[:12]}…, the run is of '{task.name}' "
                f"{task.digest[:12]}…"
            )
        digest = candidate_digest(loaded.vector, loaded.scale)
        candidates.append(Candidate(loaded.facts.run.name, loaded.vector, loaded.scale, loaded.sha256, digest))
    if len({candidate.digest for candidate in candidates}) < len(candidates):
        raise ConfigError("a model is there twice: each is scored once")
    return candidates


def with_candidate(request: PrivateRequest, candidates: Sequence[Candidate], number: int) -> PrivateRequest:
    """`request` for the scores of candidate `number`."""
    chosen = candidates[number - 1]
    return replace(
        request, round=number, model=chosen.model, scale=chosen.scale,
        candidates=",".join(candidate.digest for candidate in candidates),
    )  # fmt: skip


def scoring_request(
    config: Config, task: Task, run: str, name: str, candidates: Sequence[Candidate]
) -> EvaluateRequest:
    """The last request of a run over `candidates`, with its model; `name` is the run's own, `run` Flower's."""
    last = candidates[-1]
    return EvaluateRequest(
        run=run, round=len(candidates), task=task.name, model=last.model, scale=last.scale,
        algorithm=config.strategy.algorithm.local, keep=name, normalisation=config.task.normalisation,
        digest=task.digest, candidates=",".join(candidate.digest for candidate in candidates),
    )  # fmt: skip
