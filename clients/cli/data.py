"""`sovfed client check-data` and `sovfed data`: an institution's records, looked at before a run asks for them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.federation.help import Group
from sovfed.federation.text import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from sovfed.clients.data.survey import ColumnReport, DataReport
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Schema

KEPT: Final = ("column", "kind", "missing")
COUNTS: Final = ("missing", "outside", "unknown", "unreadable")
WIDE: Final = 10_000  # letters, more than any table takes
LEAST: Final = 12  # letters of a column's name that are never broken


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
    from sovfed.clients.data.beside import settings_of
    from sovfed.clients.data.chosen import chosen
    from sovfed.clients.data.survey import report

    own = settings_of(file)
    read_as = task_of(task)
    result = report(read_as, chosen(file, settings, own, read_as.schema))
    if own is not None and not as_json:
        click.echo(f"with the settings in {own}, as `client join --data {file}` takes them into client.yaml")
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _show(result)
        if result.usable and not any(column.suspicion for column in result.columns):
            given = shlex.join(["--task", task, "--data", str(file), *settings])
            click.echo(f"next: sovfed client join INVITATION {given}")
    ctx.exit(0 if result.usable else 1)


@click.group(cls=Group)
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


def tell_beside(overrides: Sequence[str]) -> None:
    """Say which file beside the table of `overrides` says how that is written, if one does."""
    from sovfed.clients.home.overrides import beside

    if (own := beside(overrides)) is not None:
        click.echo(f"with the settings in {own}")


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


def schema_of(names: Sequence[str]) -> Schema | None:
    """The columns of the first of these tasks that is a file: whether its records hold an image."""
    file = next((name for name in names if name.endswith((".yaml", ".yml", ARCHIVE))), "")
    return task_of(file).schema if file else None


def _outlined(path: Path) -> Task:
    """The columns of an archive's task; nothing of it is imported."""
    from sovfed.federation.archive.archive import read_archive
    from sovfed.federation.archive.outline import outline

    return outline(read_archive(path).manifest)


def _show(report: DataReport) -> None:
    from rich.console import Console

    console = Console()
    for section in _parts(report, console):
        console.print(section, highlight=False)


def _parts(report: DataReport, console: Console) -> list[RenderableType]:
    from rich.text import Text

    head = f"{report.rows} rows ({report.empty} empty ones skipped), {report.bad} at fault, {report.persons} persons"
    sides = f"{report.train} rows train, {report.test} are held out"
    classes = ", ".join(f"{name}: {count}" for name, count in report.classes.items())
    verdict, colour = _verdict(report)
    lines = [
        Text(report.where, style="bold"), Text(head), Text(sides), *([Text(f"classes: {classes}")] if classes else []),
        *(Text(f"note: {note}") for note in report.notes), *_columns(report.columns, console),
        *(Text(f"fault: {fault}", style="red") for fault in report.faults),
        *(Text(f"warning: {warning}", style="yellow") for warning in report.warnings),
        *([Text(f"no private run may use it: {report.not_private}", style="yellow")] if report.not_private else []),
        Text(verdict, style=f"bold {colour}"),
    ]  # fmt: skip
    return list(lines)


def _verdict(report: DataReport) -> tuple[str, str]:
    """Whether a run would take the records, and in which colour that is said."""
    if not report.usable:
        return f"it cannot be used as it is{'' if report.rows else ': it has no rows'}", "red"
    if doubtful := [column.name for column in report.columns if column.suspicion]:
        return f"it can be read; before it is used, see to the unit of {', '.join(doubtful)}", "yellow"
    if report.not_private:
        return (
            "it can be used as it is, but by no private run, and an institution answers others only if it says so",
            "yellow",
        )
    return "it can be used as it is", "green"


def _columns(columns: Sequence[ColumnReport], console: Console) -> list[RenderableType]:
    """A row a column; counts that are 0 everywhere are left out. Where that is too wide, a line of words a column."""
    from rich.table import Column, Table
    from rich.text import Text

    rows = [_row(column) for column in columns]
    names = (
        [name for name in rows[0] if name in KEPT or any(row[name] not in ("", "0") for row in rows)] if rows else []
    )
    table = Table(Column("column", overflow="fold", min_width=LEAST), box=None)
    for name in names[1:]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    if console.measure(table, options=console.options.update(max_width=WIDE)).minimum <= console.width:
        return [table] if rows else []
    return [Text(f" {row['column']}: {', '.join(_words(row))}") for row in rows]


def _words(row: dict[str, str]) -> list[str]:
    counts = [f"{row[name]} {name}" for name in COUNTS if row[name] != "0"]
    return [row["kind"], *filter(None, [row["unit"]]), *counts]


def _row(column: ColumnReport) -> dict[str, str]:
    return {
        "column": column.name,
        "kind": f"{column.kind}{' (target)' if column.role == 'target' else ''}",
        "unit": column.unit,
        **{name: str(getattr(column, name)) for name in COUNTS},
    }
