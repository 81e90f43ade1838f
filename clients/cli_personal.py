"""`sovfed client personal`: the models that a run left at this institution alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovfed.clients.cli_home import HOME
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from sovfed.clients.personal import Kept


@click.group(name="personal")
def personal() -> None:
    """Personal models (strategy=ditto, strategy=fedbn): made here, kept here, never sent.

    \b
    Examples:
      sovfed client personal list
      sovfed client personal export heart-2026-11 ours.safetensors
    """


@personal.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@HOME
def list_(as_json: bool, home: Path) -> None:
    """List what runs left here, newest first.

    \b
    Example:
      sovfed client personal list
    """
    found = _kept(home)
    if as_json:
        rows = [
            {"run": one.run, "task": one.task, "algorithm": one.algorithm, "round": one.round, "path": str(one.path)}
            for one in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if not found:
        click.echo("Nothing yet: personal models come of runs with strategy=ditto or strategy=fedbn.")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("run", "task", "strategy", "round", "what")
    for one in found:
        what = "a model" if one.personal else "a control variate"
        table.add_row(one.run, one.task, one.algorithm, str(one.round), what)
    Console().print(table)


@personal.command()
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@HOME
def export(run: str, out: Path, home: Path) -> None:
    """Write the personal model of RUN to OUT: a safetensors file like the published one (`model`, `scale`).

    \b
    Example:
      sovfed client personal export heart-2026-11 ours.safetensors
    """
    from safetensors.numpy import save

    from sovfed.clients.personal import read
    from sovfed.federation.files import write_private
    from sovfed.federation.schema import nearest

    models = {one.run: one for one in reversed(_kept(home)) if one.personal}
    if run not in models:
        raise DataError(f"no personal model of run '{run}' here{nearest(run, tuple(models))}")
    one = models[run]
    model, scale = read(one.path)
    head = {"task": one.task, "format": "flat vector: parameters in torch's order, then floating-point buffers"}
    write_private(out, save({"model": model, "scale": scale}, metadata={**head, "round": str(one.round)}))
    click.echo(f"{out}: {one.task}, {model.size} parameters, after round {one.round} ({one.algorithm})")


def _kept(home: Path) -> list[Kept]:
    from sovfed.clients.personal import FOLDER, PersonalStates

    return PersonalStates(home / FOLDER).list()
