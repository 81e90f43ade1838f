"""What a privacy ledger says, as `sovfed client ledger` shows it: a summary, tables, ε over time."""

from __future__ import annotations

import dataclasses
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import PrivacyError
from sovfed.federation.tables import PIPE_WIDTH, print_rows

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from sovfed.clients.ledger.entries import Budget, History
    from sovfed.federation.privacy.events import Event

REFUSALS_SHOWN: Final = 10
RUNS_SHOWN: Final = 8
PLOT_POINTS: Final = 60


def summaries(home: Path, name: str, now: float) -> list[dict[str, Any]]:
    """What `show` says of each population in one ledger, the home's own first. Raises PrivacyError on damage."""
    from sovfed.clients.ledger.book import replay
    from sovfed.clients.ledger.file import read_ledger, read_mark

    lines, signed = read_ledger(home, name)
    mark, history = read_mark(home, name), replay(lines)
    file = {
        "entries": len(lines),
        "head": lines[-1].head,
        "countersigned": dataclasses.asdict(signed) if signed else None,
        "rolled_back": str(mark) if mark else None,
    }
    return [{**_summary(history, population, now), **file} for population in history.populations()]


def _summary(history: History, population: str, now: float) -> dict[str, Any]:
    """All that a ledger says of one population; ε is recomputed from the events.

    `epsilon` is of the private runs alone: with anything in `no_bound`, ε of a person has no bound.
    """
    from sovfed.clients.ledger.entries import YEAR_S, merged
    from sovfed.federation.privacy.accounting import accountant_version

    spent, reserved = history.spent(population=population), history.reserved(population)
    year, budget = history.spent(after=now - YEAR_S, population=population), history.budgets.get(population)
    committed, recent = merged([*spent, *reserved]), merged([*year, *reserved])
    return {
        "population": population or history.name,
        "unit": "person",
        "adjacency": "add or remove one",
        "accountant": accountant_version(),
        "budget": dataclasses.asdict(budget) if budget else None,
        "studies": [dataclasses.asdict(entry) for entry in history.assigned.values() if entry.population == population],
        "no_bound": [
            {"at": day(at, "%FT%TZ"), **dataclasses.asdict(entry)} for at, entry in history.no_bound(population)
        ],
        "epsilon": {
            "spent": _epsilon(budget, spent),
            "with_open_grants": _epsilon(budget, committed),
            "spent_in_366_days": _epsilon(budget, year),
            "in_366_days_with_open_grants": _epsilon(budget, recent),
        },
        "runs": [
            {
                "run": run,
                "purpose": purpose,
                "granted": day(granted.at, "%FT%TZ"),
                "plan": dataclasses.asdict(granted.grant.plan),
                "steps_spent": granted.charged,
                "steps_reserved": granted.reserved,
                "closed": granted.closed,
            }
            for (run, purpose), granted in history.grants.items()
            if granted.grant.population == population
        ],
        "refusals": [
            {"at": day(at, "%FT%TZ"), **dataclasses.asdict(entry)}
            for at, entry in ([] if population else history.refusals)  # they stand with the home's own
        ],
    }


def _epsilon(budget: Budget | None, events: list[Event]) -> float:
    """ε of `events` at the budget's δ; without a budget nothing can have been spent."""
    from sovfed.federation.privacy.accounting import epsilon

    return epsilon(events, budget.delta) if budget else 0.0


def print_summary(summary: dict[str, Any]) -> None:
    """Print what `show` says of one population."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    budget, spent = summary["budget"], summary["epsilon"]
    _print_runs(summary, console)
    if summary["rolled_back"]:
        console.print(f"PAYS NOTHING: {summary['rolled_back']}", style="red", markup=False, soft_wrap=True)
    unbounded = summary["no_bound"]
    if unbounded:
        runs = list(dict.fromkeys(entry["run"] for entry in unbounded))
        named = ", ".join(runs[:RUNS_SHOWN]) + (f" and {len(runs) - RUNS_SHOWN} more" if len(runs) > RUNS_SHOWN else "")
        text = f"ε: no bound since {unbounded[0]['at'][:10]}: {len(runs)} runs without privacy were answered ({named})"
        console.print(text, style="yellow", markup=False, soft_wrap=True)
    if budget:
        only = ", of the private runs alone" if unbounded else ""
        console.print(
            f"ε at δ={budget['delta']:g}, unit: one person, add or remove one{only}\n"
            f"  ever             {spent['spent']:.3f} spent, {spent['with_open_grants']:.3f} with open grants, "
            f"limit {budget['epsilon']:.2f}\n"
            f"  within 366 days  {spent['spent_in_366_days']:.3f} spent, {spent['in_366_days_with_open_grants']:.3f} "
            f"with open grants, limit {budget['annual_epsilon']:.2f}"
        )
    signed = summary["countersigned"]
    upto = f"countersigned up to {signed['seq']}" if signed else "no head countersigned yet"
    console.print(f"{summary['entries']} entries, {upto}; refusals: {len(summary['refusals'])}")
    for refusal in summary["refusals"][-REFUSALS_SHOWN:]:
        text = f"  {refusal['at']}  run '{refusal['run']}', {refusal['purpose']}: {refusal['reason']}"
        console.print(text, style="yellow", markup=False, soft_wrap=True)


def _print_runs(summary: dict[str, Any], console: Console) -> None:
    rows = []
    for run in summary["runs"]:
        plan, event = run["plan"], run["plan"]["event"]
        terms = ", ".join(f"{value:g}" for value in (event["noise_multiplier"], event["sampling_rate"], plan["clip"]))
        reserved = run["steps_reserved"]
        state = "closed" if run["closed"] else f"{reserved} reserved" if reserved else "used up"
        steps = f"{run['steps_spent']} of {event['count']}"
        rows.append((run["run"], run["purpose"], plan["mechanism"], terms, steps, state, run["granted"][:10]))
    headings = ("run", "purpose", "mechanism", "z, q, clip", "steps", "state", "granted")
    print_rows(headings, rows, summary["population"], console)


def draw(home: Path, name: str, now: float, file: Path) -> None:
    """Draw ε after each spend, or some 60 of them, ever and within 366 days, beside the limits, into the PNG `file`."""
    from matplotlib.figure import Figure

    from sovfed.clients.ledger.book import replay
    from sovfed.clients.ledger.entries import YEAR_S
    from sovfed.clients.ledger.file import read_ledger

    lines, _ = read_ledger(home, name)
    history = replay(lines)
    budget = history.budgets.get("")
    if not budget or not history.spends:
        raise PrivacyError(f"'{name}': nothing was spent yet, so there is nothing to draw")
    moments = sorted({at for at, _ in history.spends})
    some = {*moments[:: -(-len(moments) // PLOT_POINTS)], moments[-1]}
    over = {at + YEAR_S + 1 for at in some}  # when they no longer count into the year
    shown = [lines[0].at, *sorted(at for at in some | over if at < now), now]
    ever = [_epsilon(budget, history.spent(until=at)) for at in shown]
    year = [_epsilon(budget, history.spent(at - YEAR_S, at)) for at in shown]
    days = [datetime.fromtimestamp(at, UTC) for at in shown]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, values, limit, colour in (
        ("ever", ever, budget.epsilon, "tab:blue"),
        ("within 366 days", year, budget.annual_epsilon, "tab:orange"),
    ):
        axes.step(days, values, where="post", color=colour, label=f"spent {label}")  # type: ignore[arg-type]
        axes.axhline(limit, color=colour, linestyle="--", linewidth=1, label=f"limit {label}: {limit:g}")
    axes.set(title=f"{name}: privacy spent", ylabel=f"ε at δ = {budget.delta:g}, one person", ylim=(0, None))
    axes.tick_params(axis="x", rotation=30)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def day(at: float, form: str) -> str:
    """The Unix time `at` in UTC, as `form` says."""
    return datetime.fromtimestamp(at, UTC).strftime(form)
