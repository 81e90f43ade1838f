"""How a run came out that was disturbed, and whether what must be found out was."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

COUNTED: Final = ("needed_operator", "wrong_model", "overspent", "mlflow_lacks", "hung", "missed")


@dataclass(frozen=True)
class Outcome:
    """How a disturbed run came out.

    `hung`: what was stopped by a signal was never started anew. `missed`: the moment did not come, nothing was struck.
    """

    point: str
    needed_operator: bool
    wrong_model: bool
    overspent: bool
    mlflow_lacks: bool
    seconds_to_next_round: float
    seconds: float
    model_error: float | None = None
    hung: bool = False
    missed: bool = False
    problem: str = ""
    ended: str = ""  # when, as YYYY-MM-DDThh:mm:ss+00:00

    @property
    def name(self) -> str:
        return self.point

    @property
    def good(self) -> bool:
        return not any(getattr(self, name) for name in COUNTED)

    def and_problem(self, problem: str) -> Outcome:
        """The same with another problem behind those that it has."""
        return dataclasses.replace(self, problem="; ".join(filter(None, [self.problem, problem])))

    def sentence(self) -> str:
        """One line on how the run came out."""
        verdicts = [
            word for word, told in (
                ("waits for an operator", self.needed_operator), ("wrong model", self.wrong_model),
                ("wrong ledger", self.overspent), ("MLflow is not whole", self.mlflow_lacks),
                ("what was stopped is stopped still", self.hung), ("its moment did not come", self.missed),
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
    name: ClassVar[str] = "controls"

    @property
    def good(self) -> bool:
        return self.found_out

    def sentence(self) -> str:
        return (
            "controls, a round too few and a run that waits for an operator: "
            f"{'both are found out' if self.found_out else 'NOT found out'}; undisturbed models differ by "
            f"at most {self.noise:.1e}, allowed {self.tolerance:.1e}"
        )


def ratios(results: Iterable[Outcome | Controls]) -> dict[str, float]:
    """How many points were played, and of how many of them each thing is said that must be said of none."""
    outcomes = [result for result in results if isinstance(result, Outcome)]
    waits = [outcome.seconds_to_next_round for outcome in outcomes]
    came = [wait for wait in waits if math.isfinite(wait)]
    return {
        "points": float(len(outcomes)),
        **{name: float(sum(getattr(outcome, name) for outcome in outcomes)) for name in COUNTED},
        "seconds_to_next_round_median": statistics.median(came) if came else 0.0,
        "seconds_to_next_round_worst": max(waits, default=0.0),
    }
