"""What `sovfed audit chaos` and `sovfed audit faults` print: a sentence a try, and the ratios that must be 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sovfed.simulations.audit.chaos.outcomes import Controls, Outcome, ratios
from sovfed.simulations.audit.chaos.points import chosen
from sovfed.simulations.audit.chaos.record import Record, line

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
    from sovfed.simulations.audit.chaos.campaign import run_campaign

    runs, record = chosen(only, quick=quick), Record[Outcome | Controls]("chaos", ratios, json_path)
    record.read(Outcome, Controls)
    names = [point.name for points in runs for point in points]
    _tell_done(record, names, console)
    run_campaign(runs, record, lambda result, left: console.print(line(result, left)), minutes)
    _tell_left(record, names, console)
    return record.close(console)


def show_faults(only: Sequence[str], json_path: Path | None, console: Console, *, minutes: float | None) -> bool:
    """As `show_chaos`, of faults; prints a table, too."""
    from rich.table import Table

    from sovfed.simulations.audit.chaos import faults

    names, record = faults.chosen_faults(only), Record[faults.Tried]("faults", faults.ratios, json_path)
    record.read(faults.Tried)
    _tell_done(record, names, console)
    faults.run_faults(names, record, lambda result, left: console.print(line(result, left)), minutes)
    table = Table("fault", "outcome", "seconds")
    for tried in record.results.values():
        outcome = "[yellow]not played" if not tried.possible else "[green]fine" if tried.good else "[red]failed"
        table.add_row(tried.fault, outcome, f"{tried.seconds:.0f}")
    console.print(table)
    _tell_left(record, names, console)
    return record.close(console)


def _tell_done(record: Record[Any], names: Sequence[str], console: Console) -> None:
    if done := len(names) - len(record.remaining(names)):
        console.print(f"{done} of {len(names)} are in {record.path}")


def _tell_left(record: Record[Any], names: Sequence[str], console: Console) -> None:
    if left := len(record.remaining(names)):
        console.print(f"{left} of {len(names)} are left: the same command goes on with them")
