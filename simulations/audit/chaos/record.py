"""What a campaign has come to so far, kept in the file of `--json`: the same command goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import write_atomic
from sovfed.simulations.audit.report import Case, Findings, document

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sovfed.simulations.audit.chaos.points import Point

AUDIT: Final = "chaos"
ADDED: Final = ("sentence", "as_it_should_be")  # to a row, beside the fields of its result


@dataclass(frozen=True)
class Outcome:
    """How a disturbed run came out; `hung`: what was stopped by a signal was never started anew."""

    point: str
    needed_operator: bool
    wrong_model: bool
    overspent: bool
    mlflow_lacks: bool
    seconds_to_next_round: float
    seconds: float
    model_error: float | None = None
    hung: bool = False
    problem: str = ""
    ended: str = ""  # when, as YYYY-MM-DDThh:mm:ss+00:00

    @property
    def good(self) -> bool:
        return not (self.needed_operator or self.wrong_model or self.overspent or self.mlflow_lacks or self.hung)

    def sentence(self) -> str:
        """One line on how the run came out."""
        verdicts = [
            word for word, told in (
                ("waits for an operator", self.needed_operator), ("wrong model", self.wrong_model),
                ("wrong ledger", self.overspent), ("MLflow is not whole", self.mlflow_lacks),
                ("what was stopped is stopped still", self.hung),
            ) if told
        ]  # fmt: skip
        model = "" if self.model_error is None else f", model within {self.model_error:.1e}"
        why = f" ({self.problem[:300]})" if self.problem else ""
        return (
            f"{self.point}: {', '.join(verdicts) or 'finished'}, next round after "
            f"{self.seconds_to_next_round:.1f} s, in all {self.seconds:.1f} s{model}{why}"
        )


@dataclass(frozen=True)
class Controls:
    """A run that lacks a round, and one that waits for an operator; `noise` is between undisturbed runs."""

    found_out: bool
    noise: float
    tolerance: float

    def sentence(self) -> str:
        return (
            "controls, a round too few and a run that waits for an operator: "
            f"{'both are found out' if self.found_out else 'NOT found out'}; undisturbed models differ by "
            f"{self.noise:.1e}, allowed {self.tolerance:.1e}"
        )


@dataclass
class Record:
    """The controls and the outcome of each point that was played, in order; written to `path` with each of them."""

    path: Path | None = None
    controls: Controls | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path | None) -> Record:
        """What the file holds; empty if there is none. Raises ConfigError for a file that is no campaign's."""
        if path is None or not path.exists() or not path.stat().st_size:
            return cls(path)
        try:
            content = json.loads(path.read_bytes())
            rows = [{key: row[key] for key in row if key not in ADDED} for row in content["rows"]]
            outcomes = [Outcome(**row) for row in rows if "point" in row]
            controls = [Controls(**row) for row in rows if "point" not in row]
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{path} is not of this version's `sovfed audit chaos`: name another file") from error
        return cls(path, controls[0] if controls else None, {outcome.point: outcome for outcome in outcomes})

    def remaining(self, points: Sequence[Point]) -> list[Point]:
        """Those of `points` that were not played yet."""
        return [point for point in points if point.name not in self.outcomes]

    def add(self, result: Outcome | Controls) -> None:
        """Take a result in, and write the file."""
        if isinstance(result, Controls):
            self.controls = result
        else:
            self.outcomes[result.point] = result
        if self.path is not None:
            write_atomic(self.path, json.dumps(document(AUDIT, self.findings()), indent=2, default=float).encode())

    def findings(self) -> Findings:
        """A case for each result, and the ratios that must be 0."""
        outcomes = list(self.outcomes.values())
        cases: list[Case] = [(outcome, outcome.sentence(), outcome.good) for outcome in outcomes]
        if self.controls is not None:
            cases.append((self.controls, self.controls.sentence(), self.controls.found_out))
        return Findings(cases, _ratios(outcomes))


def _ratios(outcomes: Sequence[Outcome]) -> dict[str, float]:
    waits = [outcome.seconds_to_next_round for outcome in outcomes if math.isfinite(outcome.seconds_to_next_round)]
    counts: dict[str, Any] = {
        name: sum(getattr(outcome, name) for outcome in outcomes)
        for name in ("needed_operator", "wrong_model", "overspent", "mlflow_lacks", "hung")
    }
    return {
        "points": float(len(outcomes)),
        **{name: float(count) for name, count in counts.items()},
        "seconds_to_next_round_median": statistics.median(waits) if waits else 0.0,
        "seconds_to_next_round_worst": max((outcome.seconds_to_next_round for outcome in outcomes), default=0.0),
    }


def with_problem(outcome: Outcome, problem: str) -> Outcome:
    """The outcome with another problem behind those that it has."""
    return dataclasses.replace(outcome, problem="; ".join(filter(None, [outcome.problem, problem])))
