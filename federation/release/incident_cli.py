"""`sovfed incident`: what a home's log has of a time, for a supervisory authority, and its check."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from sovfed.federation.help import Group

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Group)
def incident() -> None:
    """Tell a supervisory authority what happened, in a form that it can check without asking anybody.

    \b
    Examples:
      sovfed incident bundle --home ~/.sovfed/client --hours 24 --early --out early.incident
      sovfed incident bundle --home ~/.sovfed/server --hours 72 --out full.incident
      sovfed incident check full.incident --root root.pem
    """


@incident.command()
@click.option(
    "--home", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="Whose log it is."
)
@click.option("--hours", type=click.FloatRange(0), default=72.0, show_default=True, help="How far back.")
@click.option("--until", type=click.DateTime(), help="Its end (UTC), else now.")
@click.option("--early", is_flag=True, help="Counts and heads alone: the early word of the first 24 hours.")
@click.option("--note", default="", help="A sentence of yours; name no person in it.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The new file.")
def bundle(home: Path, hours: float, until: object, early: bool, note: str, out: Path) -> None:
    """Write what the log of HOME has of the last HOURS: entries with proofs, heads, cosignatures, versions; signed.

    \b
    Example:
      sovfed incident bundle --home ~/.sovfed/client --hours 72 --out full.incident
    """
    from datetime import UTC, datetime

    from sovfed.federation.files import check_new, write_private
    from sovfed.federation.release.incident import make_bundle

    end = until.replace(tzinfo=UTC).timestamp() if isinstance(until, datetime) else time.time()
    check_new(out)
    write_private(out, make_bundle(home, int(end - hours * 3600), int(end), note[:500], early=early))
    click.echo(f"wrote {out}; no record, weight or name of a person is in it; `sovfed incident check` reads it")


@incident.command()
@click.argument("file", type=FILE)
@click.option("--root", type=FILE, required=True, help="The authority's root certificate, which you trust.")
@click.option("--json", "as_json", is_flag=True, help="Print report and entries as JSON.")
def check(file: Path, root: Path, as_json: bool) -> None:
    """Check the bundle FILE by the root alone, and say what it tells (exit code 3: it does not hold).

    \b
    Example:
      sovfed incident check full.incident --root root.pem
    """
    from sovfed.federation.files import read_whole
    from sovfed.federation.identity import load_roots
    from sovfed.federation.release.incident import LARGEST, check_bundle, told
    from sovfed.federation.text import visible

    checked = check_bundle(read_whole(file, LARGEST), load_roots(root))
    if as_json:
        click.echo(json.dumps({"report": checked.report, "entries": checked.entries}, indent=2))
        return
    for line in told(checked):
        click.echo(visible(line))
