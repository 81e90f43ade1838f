"""`sovfed task`: which tasks there are, and what one of them learns from what; clients/cli/propose.py adds to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sovfed.federation.help import Group
from sovfed.federation.text import ARCHIVE

if TYPE_CHECKING:
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Column

JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
SUFFIXES: Final = (".yaml", ".yml")


def _offer(_ctx: click.Context, _option: click.Parameter, folder: Path | None) -> None:
    from sovfed.federation.tasks import bases

    bases.offer(folder)


BASE: Final = click.option(
    "--base", type=click.Path(exists=True, file_okay=False, path_type=Path), callback=_offer, expose_value=False,
    help="The folder of the Hugging Face model that the task builds on, if it does.",
)  # fmt: skip
WORDS_SHOWN: Final = 6


@click.group(cls=Group)
def task() -> None:
    """Propose, list, show and check tasks: what is learnt from which columns.

    \b
    Examples:
      sovfed task new birth --from-csv clinic.csv --target preterm
      sovfed task check birth.yaml
      sovfed task show birth.yaml
      sovfed task list
    \b
    A task as one signed file (docs/own-package.md):
      sovfed task signer create ann --organisation clinic-a
      sovfed task pack lab/
      sovfed task review lab-1.sovtask
    """


def named_task(name: str) -> Task:
    """The task of that name, or of the file if `name` is one. Raises ConfigError."""
    from sovfed.federation.tasks.registry import get_task

    if name.endswith(SUFFIXES):
        from sovfed.federation.tasks.declared import read_task

        return read_task(Path(name))
    return get_task(name)


@task.command(name="list")
@JSON
def list_(as_json: bool) -> None:
    """List the tasks that are installed here.

    \b
    Examples:
      sovfed task list
      sovfed task list --json
    """
    from sovfed.federation.tasks.registry import get_task, names

    tasks = [get_task(name) for name in names()]
    if as_json:
        click.echo(
            json.dumps([{"name": entry.name, "version": entry.version, "title": entry.title} for entry in tasks])
        )
        return
    width = max(map(len, names()), default=0)
    for entry in tasks:
        click.echo(f"{entry.name:<{width}}  {entry.title}")
    click.echo("\nOf your own: `sovfed task new NAME --from-csv FILE` (docs/own-task.md)")


@task.command()
@click.argument("name", metavar="TASK")
@JSON
@BASE
def show(name: str, as_json: bool) -> None:
    """Show the columns, model, metrics and digest of TASK, an installed one, a task.yaml or an archive.

    \b
    Examples:
      sovfed task show heart
      sovfed task show birth.yaml --json
      sovfed task show lab-1.sovtask
    """
    if name.endswith(ARCHIVE):
        _show_archive(Path(name), as_json)
        return
    selected = named_task(name)
    if as_json:
        click.echo(json.dumps(described(selected) | {"schema": selected.schema.to_dict()}, indent=2, default=str))
        return
    from rich.console import Console

    from sovfed.federation.tables import print_rows
    from sovfed.federation.text import cell

    console = Console()
    headings = ("column", "kind", "values", "unit", "if missing", "role")
    print_rows(headings, [_row(column) for column in selected.schema.columns], selected.title, console)
    for key, value in described(selected).items():
        console.print(f"{key:>11}  {cell(_line(value))}", soft_wrap=True)


def _show_archive(path: Path, as_json: bool) -> None:
    from sovfed.federation.archive.archive import read_archive
    from sovfed.federation.archive.shown import shown
    from sovfed.federation.text import visible

    archive = read_archive(path)
    if as_json:
        click.echo(archive.text.decode(), nl=False)
        return
    for line in shown(archive):
        click.echo(visible(line))


def described(found: Task) -> dict[str, Any]:
    """What there is to say of a task besides its columns."""
    schema = found.schema
    fields = {
        "name": found.name, "version": found.version, "title": found.title,
        "person": "each row is another" if schema.one_row_a_person else schema.person or "the institution says who",
        "model": _model(found), "parameters": found.parameters, "metrics": list(found.metrics.names),
        "headline": found.headline, "digest": found.digest, "privacy": _privacy(found), "licence": found.licence,
        "citation": found.citation,
    }  # fmt: skip
    from sovfed.federation.tasks.declared import DeclaredTask

    if isinstance(found, DeclaredTask):
        fields |= {"training": dict(found.training)} | dict(found.card)
    return {key: value for key, value in fields.items() if value not in ("", {}, None)}


def _model(found: Task) -> str:
    from sovfed.federation.tasks.declared import DeclaredTask
    from sovfed.federation.tasks.document import flow

    if isinstance(found, DeclaredTask) and found.file is not None:
        import dataclasses

        return flow({"family": found.file.model.family, **dataclasses.asdict(found.file.model)})
    return "none" if found.build is None else type(found.model()).__name__


def _privacy(found: Task) -> str:
    if found.build is None:
        return "nothing is trained"
    if found.layout.coupled:
        return "BatchNorm mixes records: no private run, unless task.normalisation=group"
    return f"no layer mixes records; `sovfed task check {found.name}` tries it"


def _row(column: Column) -> tuple[str, ...]:
    words = list(column.categories[:WORDS_SHOWN]) + ["…"] * (len(column.categories) > WORDS_SHOWN)
    values = ", ".join(words) if words else column.reach
    kind = f"{column.kind} {list(column.shape)}" if column.shape else column.kind
    missing = {"refuse": "refuse", "mean": "mean", "constant": f"{column.fill:g}", "category": "own category"}
    handling = missing[column.missing] + (" + indicator" if column.indicator else "")
    return column.name, kind, values, column.unit, "" if column.role == "target" else handling, column.role


def _line(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {item:g}" if isinstance(item, float) else f"{key} {item}" for key, item in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value).strip().replace("\n", " ")
