"""`sovfed client ledger`: what was learnt about the persons of this institution's data, and who asked for more."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sovfed.clients.cli_home import HOME
from sovfed.federation.errors import PrivacyError, SovfedError

if TYPE_CHECKING:
    from rich.table import Table

    from sovfed.clients.ledger_entries import History
    from sovfed.federation.privacy.events import Event

JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
DATASET: Final = click.option("--dataset", help="One dataset's ledger; default: every ledger of the home.")
REFUSALS_SHOWN: Final = 10
PLOT_POINTS: Final = 60


@click.group(name="ledger")
def ledger() -> None:
    """Show, verify, export and tidy the privacy ledgers: one for each dataset, over all runs and years.

    \b
    Examples:
      sovfed client ledger show --plot epsilon.png
      sovfed client ledger verify
      sovfed client ledger export for-the-auditor.json
      sovfed client ledger close an-abandoned-run
    """


@ledger.command()
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw ε over time into this PNG file.")
@DATASET
@JSON
@HOME
def show(plot: Path | None, dataset: str | None, as_json: bool, home: Path) -> None:
    """Show ε against its limits, what each run was granted and has spent, and the newest refusals.

    \b
    Examples:
      sovfed client ledger show
      sovfed client ledger show --dataset heart --plot epsilon.png
    """
    now = time.time()
    names = _names(home, dataset)
    if plot and len(names) > 1:
        raise click.UsageError(f"--plot draws one ledger; name it with --dataset ({', '.join(names)})")
    found = [_summary(home, name, now) for name in names]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        for summary in found:
            _print(summary)
    if plot:
        _draw(home, names[0], now, plot)
        click.echo(f"wrote {plot}", err=True)


@ledger.command()
@DATASET
@HOME
@click.pass_context
def verify(ctx: click.Context, dataset: str | None, home: Path) -> None:
    """Check every line of the ledgers, and that none ends before its countersigned head. Exits with 1 on damage.

    \b
    Example:
      sovfed client ledger verify && echo sound
    """
    from sovfed.clients.ledger_file import read_ledger

    damaged = False
    try:
        names = _names(home, dataset)
    except SovfedError as error:
        click.echo(f"error: {error}", err=True)
        ctx.exit(1)
    for name in names:
        try:
            lines, signed = read_ledger(home, name)
        except SovfedError as error:
            damaged = True
            click.echo(f"error: {error}", err=True)
            continue
        upto = f"countersigned up to entry {signed.seq}" if signed else "no head countersigned yet"
        click.echo(f"{name}: sound, entries 0 to {lines[-1].seq}, {upto}, head {lines[-1].head}")
    ctx.exit(1 if damaged else 0)


@ledger.command()
@click.argument("run")
@DATASET
@HOME
def close(run: str, dataset: str | None, home: Path) -> None:
    """End RUN's grant, and give the steps that it never started back to the budget. Needs `sovfed client down` first.

    A finished run gives its spare steps back by itself; this is for one that was abandoned.

    \b
    Example:
      sovfed client ledger close heart-2026-11
    """
    from sovfed.clients.ledger import PrivacyLedger
    from sovfed.clients.policy import load_policy

    names = _names(home, dataset)
    if len(names) > 1:
        raise click.UsageError(f"name one ledger with --dataset ({', '.join(names)})")
    found = PrivacyLedger(home, names[0], load_policy(home).privacy)
    try:
        click.echo(f"{names[0]}: run '{run}' is closed, {found.close(run)} steps are back in the budget")
    finally:
        found.unlock()


@ledger.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@DATASET
@HOME
def export(file: Path, dataset: str | None, home: Path) -> None:
    """Write the ledgers to FILE for an auditor: a summary and every line as it stands, without the key.

    `prev` of each line is the SHA-256 of the line before with its newline, so the chain can be checked without us.

    \b
    Example:
      sovfed client ledger export for-the-auditor.json
    """
    from sovfed.clients.ledger_file import ledger_path
    from sovfed.federation.files import write_private

    now = time.time()
    ledgers = []
    for name in _names(home, dataset):
        summary = _summary(home, name, now)
        lines = ledger_path(home, name).read_text(encoding="ascii").splitlines()
        ledgers.append({**summary, "lines": lines[: summary["entries"]]})
    text = json.dumps({"exported": _day(now, "%FT%TZ"), "ledgers": ledgers}, indent=2)
    write_private(file, text.encode())
    click.echo(f"wrote {file}")


def _names(home: Path, dataset: str | None) -> list[str]:
    from sovfed.clients.ledger_file import datasets

    found = [dataset] if dataset else datasets(home)
    if not found:
        raise PrivacyError(f"{home} has no privacy ledger")
    return found


def _summary(home: Path, dataset: str, now: float) -> dict[str, Any]:
    """All that `show` says of one ledger; ε is recomputed from the events. Raises PrivacyError on damage."""
    from sovfed.clients.ledger import replay
    from sovfed.clients.ledger_entries import YEAR_S, merged
    from sovfed.clients.ledger_file import read_ledger
    from sovfed.federation.privacy.accounting import accountant_version

    lines, signed = read_ledger(home, dataset)
    history = replay(lines)
    spent, year, reserved = history.spent(), history.spent(after=now - YEAR_S), history.reserved()
    return {
        "dataset": dataset,
        "unit": "person",
        "adjacency": "add or remove one",
        "accountant": accountant_version(),
        "entries": len(lines),
        "head": lines[-1].head,
        "countersigned": dataclasses.asdict(signed) if signed else None,
        "budget": dataclasses.asdict(history.budget) if history.budget else None,
        "epsilon": {
            "spent": _epsilon(history, spent),
            "with_open_grants": _epsilon(history, merged([*spent, *reserved])),
            "spent_in_366_days": _epsilon(history, year),
            "in_366_days_with_open_grants": _epsilon(history, merged([*year, *reserved])),
        },
        "runs": [
            {
                "run": run,
                "purpose": purpose,
                "granted": _day(granted.at, "%FT%TZ"),
                "plan": dataclasses.asdict(granted.grant.plan),
                "steps_spent": granted.charged,
                "steps_reserved": granted.reserved,
                "closed": granted.closed,
            }
            for (run, purpose), granted in history.grants.items()
        ],
        "refusals": [{"at": _day(at, "%FT%TZ"), **dataclasses.asdict(entry)} for at, entry in history.refusals],
    }


def _epsilon(history: History, events: list[Event]) -> float:
    """ε of `events` at the budget's δ; without a budget nothing can have been spent."""
    from sovfed.federation.privacy.accounting import epsilon

    return epsilon(events, history.budget.delta) if history.budget else 0.0


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)  # a file or pipe has no width
    budget, spent = summary["budget"], summary["epsilon"]
    console.print(_runs(summary))
    if budget:
        console.print(
            f"ε at δ={budget['delta']:g}, unit: one person, add or remove one\n"
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


def _runs(summary: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "purpose", "mechanism", "z, q, clip", "steps", "state", "granted", title=summary["dataset"])
    for run in summary["runs"]:
        plan, event = run["plan"], run["plan"]["event"]
        terms = ", ".join(f"{value:g}" for value in (event["noise_multiplier"], event["sampling_rate"], plan["clip"]))
        left = run["steps_reserved"]
        state = "closed" if run["closed"] else f"{left} reserved" if left else "used up"
        steps = f"{run['steps_spent']} of {event['count']}"
        names = [escape(run["run"]), escape(run["purpose"]), plan["mechanism"]]
        table.add_row(*names, terms, steps, state, run["granted"][:10])
    return table


def _draw(home: Path, dataset: str, now: float, file: Path) -> None:
    """ε after each spend, or after some 60 of them, ever and within the last 366 days, beside the limits."""
    from matplotlib.figure import Figure

    from sovfed.clients.ledger import replay
    from sovfed.clients.ledger_entries import YEAR_S
    from sovfed.clients.ledger_file import read_ledger

    lines, _ = read_ledger(home, dataset)
    history = replay(lines)
    if not history.budget or not history.spends:
        raise PrivacyError(f"'{dataset}': nothing was spent yet, so there is nothing to draw")
    moments = sorted({at for at, _ in history.spends})
    some = {*moments[:: -(-len(moments) // PLOT_POINTS)], moments[-1]}
    over = {at + YEAR_S + 1 for at in some}  # when they no longer count into the year
    shown = [lines[0].at, *sorted(at for at in some | over if at < now), now]
    ever = [_epsilon(history, history.spent(until=at)) for at in shown]
    year = [_epsilon(history, history.spent(at - YEAR_S, at)) for at in shown]
    days = [datetime.fromtimestamp(at, UTC) for at in shown]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, values, limit, colour in (
        ("ever", ever, history.budget.epsilon, "tab:blue"),
        ("within 366 days", year, history.budget.annual_epsilon, "tab:orange"),
    ):
        axes.step(days, values, where="post", color=colour, label=f"spent {label}")  # type: ignore[arg-type]
        axes.axhline(limit, color=colour, linestyle="--", linewidth=1, label=f"limit {label}: {limit:g}")
    axes.set(title=f"{dataset}: privacy spent", ylabel=f"ε at δ = {history.budget.delta:g}, one person", ylim=(0, None))
    axes.tick_params(axis="x", rotation=30)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def _day(at: float, form: str) -> str:
    return datetime.fromtimestamp(at, UTC).strftime(form)
