"""`sovfed client table`: signed tables of statistics and of scores, as they were received here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.help import Group
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from sovfed.clients.statistics.sheets import KeptSheets


@click.group(cls=Group, name="table")
def table() -> None:
    """Tables of statistics and of scores, signed by the agency and received here.

    \b
    Examples:
      sovfed client table list
      sovfed client table get heart-counts heart-counts.table
    """


@table.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@HOME
def list_(as_json: bool, home: Path) -> None:
    """List the signed tables that runs left here, newest first.

    \b
    Example:
      sovfed client table list
    """
    from sovfed.federation.errors import EvidenceError
    from sovfed.federation.tables import print_rows

    sheets, wrong = _sheets(home).list()
    rows = [_row(sheet.predicate) for sheet in sheets]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif rows:
        print_rows(("run", "date", "task", "of", "privacy"), [tuple(row.values()) for row in rows])
    elif not wrong:
        click.echo("Nothing yet: tables come with the runs that this institution takes part in.")
    if wrong:
        raise EvidenceError("; ".join(wrong))


@table.command()
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@HOME
def get(run: str, out: Path, home: Path) -> None:
    """Show the table of RUN, and write it as it was signed into the new file OUT.

    \b
    Examples:
      sovfed client table get heart-counts heart-counts.table
      sovfed verify heart-counts.table --root root.pem     (anybody, anywhere)
    """
    from sovfed.federation.files import check_new, write_private
    from sovfed.federation.statistics.shown import lines_of

    sheet = _sheets(home).find(run)
    check_new(out)
    for line in lines_of(sheet.predicate["table"]):
        click.echo(visible(line))
    write_private(out, sheet.path.read_bytes())
    click.echo(f"wrote {out}; `sovfed verify {out} --root root.pem` checks it", err=True)


def _row(predicate: dict[str, Any]) -> dict[str, str]:
    run, privacy = predicate["run"], predicate["privacy"]
    return {
        "run": run["name"], "date": run["date"], "task": run["task"]["name"], "of": predicate["question"] or "models",
        "privacy": "–" if privacy is None else f"ε {privacy['epsilon']:.3g}",
    }  # fmt: skip


def _sheets(home: Path) -> KeptSheets:
    from sovfed.clients.models.received import FOLDER
    from sovfed.clients.statistics.sheets import KeptSheets

    return KeptSheets(home / FOLDER, home / "identity" / "root.pem")
