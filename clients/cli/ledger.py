"""`sovfed client ledger`: what was learnt about the persons of this institution's data, and who asked for more."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.clients.cli.home import HOME
from sovfed.clients.cli.ledger_shown import day, draw, print_summary, summaries
from sovfed.federation.errors import PrivacyError, SovfedError
from sovfed.federation.help import Group

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.clients.ledger.book import PrivacyLedger

JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


@click.group(cls=Group, name="ledger")
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
    shown = [summary for name in names for summary in summaries(home, name, now)]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    else:
        for summary in shown:
            print_summary(summary)
    if plot:
        draw(home, names[0], now, plot)
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
    today = day(time.time(), "%F")
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
        first, *populations = summaries(home, name, now)
        lines = ledger_path(home, name).read_text(encoding="ascii").splitlines()
        ledgers.append({**first, "populations": populations, "lines": lines[: first["entries"]]})
    text = json.dumps({"exported": day(now, "%FT%TZ"), "ledgers": ledgers}, indent=2)
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
