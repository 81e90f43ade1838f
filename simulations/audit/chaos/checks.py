"""Whether a run that was disturbed came out as one that was not: its model, its ledgers, its rounds, its MLflow run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.ledger.book import replay
from sovfed.clients.ledger.file import read_ledger
from sovfed.federation.privacy.accounting import epsilon
from sovfed.server.runs import folders
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.release import TRACKED, read_model
from sovfed.server.runs.tracking import figures, tracking_uri

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.federation.config import Config
    from sovfed.federation.messages import Vector

LEAST: Final = 1e-9  # a tolerance below it would be about float32 alone
WITHIN: Final = 4.0  # times the distance of undisturbed runs, of which two are a small sample


@dataclass(frozen=True)
class Reference:
    """The model of an undisturbed run, and how far such runs lie from it by the random rounding of secure sums."""

    model: Vector
    noise: float

    @property
    def tolerance(self) -> float:
        return max(LEAST, WITHIN * self.noise)

    def error(self, model: Vector) -> float:
        return distance(model, self.model)


def distance(model: Vector, other: Vector) -> float:
    """The largest difference of two models in any parameter; infinite if they are not of one shape."""
    return float(np.max(np.abs(model - other))) if model.shape == other.shape else math.inf


def model_of(agency: Path, name: str) -> Vector:
    """The model that run `name` released."""
    return read_model(folders.run_folder(agency, name)).vector


def rounds_once(agency: Path, name: str, count: int) -> bool:
    """Whether every round from 1 to `count` is written down, each once and in order."""
    lines = read_rounds(folders.run_folder(agency, name))
    return [line["round"] for line in lines] == list(range(1, count + 1))


def lacking_in_mlflow(agency: Path, config: Config, name: str) -> list[str]:
    """What the run's MLflow run lacks of `rounds.jsonl`, or has otherwise or twice; empty when it is whole."""
    from mlflow import MlflowClient

    folder = folders.run_folder(agency, name)
    client = MlflowClient(tracking_uri(config, agency))
    run = client.get_run((folder / TRACKED).read_text().strip())
    lacking = [] if run.info.status == "FINISHED" else [f"its status is {run.info.status}"]
    lines = read_rounds(folder)
    for key in sorted({key for line in lines for key in figures(line)}):
        told = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
        written = [(line["round"], figures(line)[key]) for line in lines if key in figures(line)]
        if not _equal(sorted(told), written):
            lacking.append(f"{key}: {len(told)} points for {len(written)} rounds")
    return lacking


def _equal(told: list[tuple[int, float]], written: list[tuple[int, float]]) -> bool:
    steps = [step for step, _ in told] == [step for step, _ in written]
    return steps and all(math.isclose(one, other) for (_, one), (_, other) in zip(told, written, strict=True))


def wrong_charges(home: Path, population: str, config: Config, name: str, rounds: list[dict[str, Any]],
                  member: str) -> Iterator[tuple[str, bool]]:  # fmt: skip
    """What is wrong with an institution's ledger after the private run `name`, and whether it was overspent."""
    history = replay(read_ledger(home, population)[0])
    granted = next((granted for (run, _), granted in history.grants.items() if run == name), None)
    answered = sum(member in line["participants"] for line in rounds)
    if granted is None:
        if answered:
            yield f"{member}: {answered} rounds answered without a grant", True
        return
    if granted.charged > granted.grant.plan.event.count:
        yield f"{member}: charged {granted.charged} of {granted.grant.plan.event.count} granted", True
    if granted.charged < answered:
        yield f"{member}: {answered} rounds answered, {granted.charged} charged", True
    spent = epsilon(history.spent(), config.privacy.delta)
    limit = history.budgets[""].epsilon
    if spent > limit:
        yield f"{member}: ε = {spent:.3f} spent, the limit is {limit:g}", True
