"""`sovfed client check-data` and `sovfed data`: an institution's records, looked at before a run asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.federation.text import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from sovfed.clients.data.survey import ColumnReport, DataReport
    from sovfed.federation.tasks import Task

KEPT: Final = ("column", "kind", "missing")
LONGEST: Final = 32  # letters of a column's name that are never broken
ONE_LINE: Final = ("kind", "missing", "outside", "unknown", "unreadable")


@click.command("check-data")
@click.argument("task")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.argument("settings", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@click.pass_context
def check_data(ctx: click.Context, task: str, file: Path, settings: tuple[str, ...], as_json: bool) -> None:
    """Look at FILE as TASK would read it, and say what to mend. Shows counts and lines, and no value of a record.

    TASK is an installed task or a task.yaml, FILE a table or a folder. SETTINGS are those of the group data, over those
    in a file NAME.yaml beside NAME.csv, as a simulation has them. Exits with 1 if the file cannot be used as it is.

    \b
    Examples:
      sovfed client check-data renal.yaml patients.csv
      sovfed client check-data renal.yaml patients.csv data.person=mrn data.decimal=,
      sovfed client check-data heart patients.parquet --json
    """
    from sovfed.clients.data.beside import ENDING, is_settings
    from sovfed.clients.data.chosen import chosen
    from sovfed.clients.data.survey import report

    own = file.with_suffix(ENDING) if file.is_file() and is_settings(file.with_suffix(ENDING)) else None
    result = report(task_of(task), chosen(file, settings, own))
    if own is not None and not as_json:
        click.echo(f"with the settings in {own}; an institution's node has those of its client.yaml")
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _show(result)
    ctx.exit(0 if result.usable else 1)


@click.group()
def data() -> None:
    """List the sources that records can come from.

    \b
    Example:
      sovfed data sources
    """


@data.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON: {name: what}.")
def sources(as_json: bool) -> None:
    """List the data connectors that are installed here, our own and others'.

    \b
    Example:
      sovfed data sources
    """
    from sovfed.clients.data import described

    descriptions = described()
    if as_json:
        click.echo(json.dumps(descriptions, indent=2))
        return
    width = max(map(len, descriptions))
    for name, description in descriptions.items():
        click.echo(f"{name.ljust(width)}  {description}")


def task_of(name: str) -> Task:
    """The task of a file, or an installed one."""
    if name.endswith(ARCHIVE):
        return _outlined(Path(name))
    if name.endswith((".yaml", ".yml")) or "/" in name:
        from sovfed.federation.tasks.declared import read_task

        task: Task = read_task(Path(name))
        return task
    from sovfed.federation.tasks.registry import get_task

    return get_task(name)


def _outlined(path: Path) -> Task:
    """The columns of an archive's task; nothing of it is imported."""
    from sovfed.federation.archive.archive import read_archive
    from sovfed.federation.archive.outline import outline

    return outline(read_archive(path).manifest)


def _show(report: DataReport) -> None:
    from rich.console import Console

    console = Console()
    for section in _parts(report):
        console.print(section, highlight=False)


def _parts(report: DataReport) -> list[RenderableType]:
    from rich.text import Text

    head = f"{report.rows} rows ({report.empty} empty ones skipped), {report.bad} at fault, {report.persons} persons"
    sides = f"{report.train} rows train, {report.test} are held out"
    classes = ", ".join(f"{name}: {count}" for name, count in report.classes.items())
    verdict, colour = _verdict(report)
    lines = [
        Text(report.where, style="bold"), Text(head), Text(sides), *([Text(f"classes: {classes}")] if classes else []),
        *(Text(f"note: {note}") for note in report.notes), _table(report.columns) if report.columns else Text(""),
        *(Text(f"fault: {fault}", style="red") for fault in report.faults),
        *(Text(f"warning: {warning}", style="yellow") for warning in report.warnings),
        *([Text(f"no private run may use it: {report.not_private}", style="yellow")] if report.not_private else []),
        Text(verdict, style=f"bold {colour}"),
    ]  # fmt: skip
    return list(lines)


def _verdict(report: DataReport) -> tuple[str, str]:
    """Whether a run would take the records, and in which colour that is said."""
    if not report.usable:
        return "it cannot be used as it is", "red"
    if doubtful := [column.name for column in report.columns if column.suspicion]:
        return f"it can be read; before it is used, see to the unit of {', '.join(doubtful)}", "yellow"
    return "it can be used as it is", "green"


def _table(columns: Sequence[ColumnReport]) -> Table:
    """A line a column; counts that are 0 everywhere are left out, so that 80 letters are enough for most."""
    from rich.table import Column, Table

    rows = [_row(column) for column in columns]
    names = [name for name in rows[0] if name in KEPT or any(row[name] not in ("", "0") for row in rows)]
    least = min(LONGEST, max(len(row["column"]) for row in rows))
    table = Table(Column("column", overflow="fold", min_width=least), box=None)
    for name in names[1:]:
        table.add_column(name, no_wrap=name in ONE_LINE, overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _row(column: ColumnReport) -> dict[str, str]:
    return {
        "column": column.name,
        "kind": f"{column.kind}{' (target)' if column.role == 'target' else ''}",
        "unit": column.unit,
        **{name: str(getattr(column, name)) for name in ("missing", "outside", "unknown", "unreadable")},
        "first lines": ", ".join(map(str, column.first_lines)),
    }
