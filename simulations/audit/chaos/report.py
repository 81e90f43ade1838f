"""What `sovfed audit chaos` tells: a sentence a point, and the ratios that must be 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.simulations.audit.chaos.campaign import Outcome, run_campaign
from sovfed.simulations.audit.chaos.points import chosen
from sovfed.simulations.audit.report import Case, Findings, verdict, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.console import Console


@dataclass(frozen=True)
class Controls:
    """A run that lacks a round, and one that waits for an operator; `noise` is between undisturbed runs."""

    found_out: bool
    noise: float
    tolerance: float


def run_chaos(only: Sequence[str], quick: bool, told: Callable[[str], None]) -> Findings:
    """A case for each point of these names, and the controls; `told` gets each sentence as it is known."""
    points = chosen(only, quick=quick)
    outcomes, campaign, found_out = run_campaign(points, lambda outcome: told(verdict(sentence(outcome), outcome.good)))
    reference = campaign.reference
    controls = Controls(found_out, reference.noise, reference.tolerance)
    cases: list[Case] = [(outcome, sentence(outcome), outcome.good) for outcome in outcomes]
    text = (
        f"controls, a round too few and a run that waits for an operator: both are found out; undisturbed models "
        f"differ by {reference.noise:.1e}, allowed {reference.tolerance:.1e}"
    )
    told(verdict(text, found_out))
    cases.append((controls, text, found_out))
    return Findings(
        cases,
        {
            "points": float(len(outcomes)),
            "needed_operator": float(sum(outcome.needed_operator for outcome in outcomes)),
            "wrong_model": float(sum(outcome.wrong_model for outcome in outcomes)),
            "overspent": float(sum(outcome.overspent for outcome in outcomes)),
            "mlflow_lacks": float(sum(outcome.mlflow_lacks for outcome in outcomes)),
            "still_hung": float(sum(outcome.hung for outcome in outcomes)),
            "seconds_to_next_round_worst": max((outcome.seconds_to_next_round for outcome in outcomes), default=0.0),
        },
    )


def sentence(outcome: Outcome) -> str:
    """One line on how the run at a point came out."""
    verdicts = [
        word for word, told in (
            ("waits for an operator", outcome.needed_operator), ("wrong model", outcome.wrong_model),
            ("wrong ledger", outcome.overspent), ("MLflow is not whole", outcome.mlflow_lacks),
        ) if told
    ]  # fmt: skip
    model = "" if outcome.model_error is None else f", model within {outcome.model_error:.1e}"
    hung = "; what was stopped is stopped still" if outcome.hung else ""
    why = f" ({outcome.problem[:300]})" if outcome.problem else ""
    return (
        f"{outcome.point}: {', '.join(verdicts) or 'finished'}, next round after "
        f"{outcome.seconds_to_next_round:.1f} s, in all {outcome.seconds:.1f} s{model}{hung}{why}"
    )


def show_faults(only: Sequence[str], json_path: Path | None, console: Console) -> bool:
    """Whether the faults of these names all went well; prints a line each and a table, and writes them as JSON."""
    from rich.table import Table

    from sovfed.simulations.audit.chaos.faults import Tried, run_faults

    def text(tried: Tried) -> str:
        if not tried.possible:
            return f"{tried.fault}: not played here, {tried.problem}"
        return f"{tried.fault}: {tried.problem or 'the run came to its end by itself'}, {tried.seconds:.0f} s"

    results = run_faults(only, lambda tried: console.print(verdict(text(tried), tried.good)))
    table = Table("fault", "outcome", "seconds")
    for tried in results:
        outcome = "[yellow]not played" if not tried.possible else "[green]fine" if tried.good else "[red]failed"
        table.add_row(tried.fault, outcome, f"{tried.seconds:.0f}")
    console.print(table)
    cases: list[Case] = [(tried, text(tried), tried.good) for tried in results]
    ratios = {
        "faults": float(len(results)),
        "failed": float(sum(not tried.good for tried in results)),
        "not_played": float(sum(not tried.possible for tried in results)),
    }
    return write("faults", Findings(cases, ratios), json_path, console)
