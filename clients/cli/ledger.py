"""`sovfed client ledger`: what was learnt about the persons of this institution's data, and who asked for more."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.errors import PrivacyError, SovfedError
from sovfed.federation.text import PIPE_WIDTH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from sovfed.clients.ledger.book import PrivacyLedger
    from sovfed.clients.ledger.entries import Budget, History
    from sovfed.federation.privacy.events import Event

JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
REFUSALS_SHOWN: Final = 10
RUNS_SHOWN: Final = 8
PLOT_POINTS: Final = 60


@click.group(name="ledger")
def ledger() -> None:
    """Show, verify, export and tidy the privacy ledger of this home's population, over all runs and years.

    \b
    Examples:
      sovfed client ledger show --plot epsilon.png
      sovfed client ledger verify
      sovfed client ledger export for-the-auditor.json
      sovfed client ledger close an-abandoned-run
    """


@ledger.command()
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw ε over time into this PNG file.")
@JSON
@HOME
def show(plot: Path | None, as_json: bool, home: Path) -> None:
    """Show ε against its limits, what each run was granted and has spent, and the newest refusals.

    \b
    Examples:
      sovfed client ledger show
      sovfed client ledger show --plot epsilon.png
    """
    now = time.time()
    names = _names(home)
    if plot and len(names) > 1:
        raise click.UsageError(f"--plot draws one ledger, and this home has {', '.join(names)}: adopt the others first")
    summaries = [summary for name in names for summary in _summaries(home, name, now)]
    if as_json:
        click.echo(json.dumps(summaries, indent=2))
    else:
        for summary in summaries:
            _print(summary)
    if plot:
        _draw(home, names[0], now, plot)
        click.echo(f"wrote {plot}", err=True)


@ledger.command()
@HOME
@click.pass_context
def verify(ctx: click.Context, home: Path) -> None:
    """Check every line of the ledger, and that it has what was countersigned and told of it. Exits with 1 if not.

    \b
    Example:
      sovfed client ledger verify && echo sound
    """
    from sovfed.clients.ledger.file import read_ledger, read_mark

    damaged = False
    try:
        names = _names(home)
    except SovfedError as error:
        click.echo(f"error: {error}", err=True)
        ctx.exit(1)
    for name in names:
        try:
            lines, signed = read_ledger(home, name)
            mark = read_mark(home, name)
            if mark:
                raise PrivacyError(f"{name}: {mark}")
        except SovfedError as error:
            damaged = True
            click.echo(f"error: {error}", err=True)
            continue
        upto = f"countersigned up to entry {signed.seq}" if signed else "no head countersigned yet"
        click.echo(f"{name}: sound, entries 0 to {lines[-1].seq}, {upto}, head {lines[-1].head}")
    ctx.exit(1 if damaged else 0)


@ledger.command()
@click.argument("run")
@HOME
def close(run: str, home: Path) -> None:
    """End RUN's grant, and give the steps that it never started back to the budget. Needs `sovfed client down` first.

    A finished run gives its spare steps back by itself, and one that was abandoned after `lapse_days`.

    \b
    Example:
      sovfed client ledger close heart-2026-11
    """
    with _opened(home) as privacy_ledger:
        click.echo(
            f"{privacy_ledger.name}: run '{run}' is closed, {privacy_ledger.close(run)} steps are back in the budget"
        )


@ledger.command()
@click.argument("name")
@HOME
def adopt(name: str, home: Path) -> None:
    """Make the ledger NAME part of the one that policy.yaml names. Needs `sovfed client down` first.

    It is renamed, or, if the population has a ledger already, what it spent is entered there as if it were spent now.

    \b
    Example:
      sovfed client ledger adopt uci_heart
    """
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.ledger.adopt import adopt as bring_in

    click.echo(bring_in(home, name, load_policy(home).privacy.population_name, time.time()))


@ledger.command()
@click.argument("study")
@click.option("--because", required=True, help="Who the persons are, for whoever reads the ledger.")
@click.option("--other-people", is_flag=True, help="They are none of those that these records stood for before.")
@HOME
def assign(study: str, because: str, other_people: bool, home: Path) -> None:
    """Enter for good that STUDY's records are of the population that client.yaml names. Needs `sovfed client down`.

    A further population is charged only after this. What was charged so far for the same records, task or place is
    charged to it too, unless you say that they are of other people.

    \b
    Examples:
      sovfed client ledger assign births --because "women who gave birth in 2026; in no other study"
      sovfed client ledger assign births --because "the table was replaced" --other-people
    """
    from sovfed.clients.home.folder import load_config
    from sovfed.clients.home.whose import whose_in
    from sovfed.federation.text import AT

    config = load_config(home)
    if study not in config.studies:
        raise click.UsageError(f"client.yaml has no study '{study}' ({', '.join(config.studies) or 'it has none'})")
    whose = whose_in(config, study, config.studies[study].task.partition(AT)[0])
    with _opened(home) as opened:
        entry = opened.assign(whose, because, apart=other_people)
    click.echo(f"{opened.name}: the records of {study} are of '{entry.population or opened.name}' from here on")
    for heir in entry.inherits:
        click.echo(f"what was charged to '{heir or opened.name}' so far is charged to them too")


@ledger.command()
@HOME
def restored(home: Path) -> None:
    """Let a ledger that was found rolled back pay again, once the whole one was put back. Needs `sovfed client down`.

    \b
    Example:
      sovfed client ledger restored
    """
    with _opened(home) as privacy_ledger:
        was = privacy_ledger.restored()
    click.echo(
        f"{privacy_ledger.name}: has entry {was.seq} again and pays"
        if was
        else f"{privacy_ledger.name}: was not rolled back"
    )


@ledger.command("confirm-clock")
@click.argument("date")
@HOME
def confirm_clock(date: str, home: Path) -> None:
    """Vouch for the clock, which must say DATE (YYYY-MM-DD, UTC): budget comes back by it. Needs `sovfed client down`.

    \b
    Example:
      sovfed client ledger confirm-clock 2027-03-01
    """
    today = _day(time.time(), "%F")
    if date != today:
        raise click.UsageError(
            f"the clock says {today}, not {date}: set the clock first, or look at the calendar again"
        )
    with _opened(home) as privacy_ledger:
        privacy_ledger.confirm_clock()
    click.echo(f"{privacy_ledger.name}: goes on from {today}")


@ledger.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@HOME
def export(file: Path, home: Path) -> None:
    """Write the ledgers to FILE for an auditor: a summary and every line as it stands, without the key.

    `prev` of each line is the SHA-256 of the line before with its newline, so the chain can be checked without us.

    \b
    Example:
      sovfed client ledger export for-the-auditor.json
    """
    from sovfed.clients.ledger.file import ledger_path
    from sovfed.federation.files import write_private

    now = time.time()
    ledgers = []
    for name in _names(home):
        first, *populations = _summaries(home, name, now)
        lines = ledger_path(home, name).read_text(encoding="ascii").splitlines()
        ledgers.append({**first, "populations": populations, "lines": lines[: first["entries"]]})
    text = json.dumps({"exported": _day(now, "%FT%TZ"), "ledgers": ledgers}, indent=2)
    write_private(file, text.encode())
    click.echo(f"wrote {file}")


def _names(home: Path) -> list[str]:
    from sovfed.clients.ledger.file import ledgers

    names = ledgers(home)
    if not names:
        raise PrivacyError(f"{home} has no privacy ledger")
    return names


@contextlib.contextmanager
def _opened(home: Path) -> Iterator[PrivacyLedger]:
    """The ledger of the home's population, for a command that writes to it."""
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.trainer.process import ledger_opener

    privacy_ledger = ledger_opener(home, load_policy(home))()
    try:
        yield privacy_ledger
    finally:
        privacy_ledger.unlock()


def _summaries(home: Path, name: str, now: float) -> list[dict[str, Any]]:
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
            {"at": _day(at, "%FT%TZ"), **dataclasses.asdict(entry)} for at, entry in history.no_bound(population)
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
                "granted": _day(granted.at, "%FT%TZ"),
                "plan": dataclasses.asdict(granted.grant.plan),
                "steps_spent": granted.charged,
                "steps_reserved": granted.reserved,
                "closed": granted.closed,
            }
            for (run, purpose), granted in history.grants.items()
            if granted.grant.population == population
        ],
        "refusals": [
            {"at": _day(at, "%FT%TZ"), **dataclasses.asdict(entry)}
            for at, entry in ([] if population else history.refusals)  # they stand with the home's own
        ],
    }


def _epsilon(budget: Budget | None, events: list[Event]) -> float:
    """ε of `events` at the budget's δ; without a budget nothing can have been spent."""
    from sovfed.federation.privacy.accounting import epsilon

    return epsilon(events, budget.delta) if budget else 0.0


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    budget, spent = summary["budget"], summary["epsilon"]
    console.print(_runs(summary))
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


def _runs(summary: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "purpose", "mechanism", "z, q, clip", "steps", "state", "granted", title=summary["population"])
    for run in summary["runs"]:
        plan, event = run["plan"], run["plan"]["event"]
        terms = ", ".join(f"{value:g}" for value in (event["noise_multiplier"], event["sampling_rate"], plan["clip"]))
        reserved = run["steps_reserved"]
        state = "closed" if run["closed"] else f"{reserved} reserved" if reserved else "used up"
        steps = f"{run['steps_spent']} of {event['count']}"
        names = [escape(run["run"]), escape(run["purpose"]), plan["mechanism"]]
        table.add_row(*names, terms, steps, state, run["granted"][:10])
    return table


def _draw(home: Path, name: str, now: float, file: Path) -> None:
    """ε after each spend, or after some 60 of them, ever and within the last 366 days, beside the limits."""
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


def _day(at: float, form: str) -> str:
    return datetime.fromtimestamp(at, UTC).strftime(form)
