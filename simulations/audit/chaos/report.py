"""What `sovfed audit chaos` and `sovfed audit faults` print: a sentence a point, and the ratios that must be 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.simulations.audit.chaos.campaign import run_campaign
from sovfed.simulations.audit.chaos.points import chosen
from sovfed.simulations.audit.chaos.record import AUDIT, Controls, Outcome, Record
from sovfed.simulations.audit.report import Case, Findings, verdict, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console


def show_chaos(
    only: Sequence[str], json_path: Path | None, console: Console, *, quick: bool, minutes: float | None
) -> bool:
    """Whether all went well that was played so far of the points of these names, with the controls.

    Prints a line each, and the ratios; a campaign whose results are in `json_path` goes on.
    """
    points, record = chosen(only, quick=quick), Record.of(json_path)
    if already := len(points) - len(record.remaining(points)):
        console.print(f"{already} of {len(points)} points are in {json_path}")

    def told(result: Outcome | Controls, left: str) -> None:
        good = result.good if isinstance(result, Outcome) else result.found_out
        console.print(verdict(result.sentence() + (f" [dim]({left})[/]" if left else ""), good))

    run_campaign(points, record, told, minutes)
    if remaining := record.remaining(points):
        console.print(f"{len(remaining)} of {len(points)} points are left: the same command goes on with them")
    return write(AUDIT, record.findings(), json_path, console)


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
