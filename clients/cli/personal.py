"""`sovfed client personal`: the models that a run left at this institution alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.errors import DataError
from sovfed.federation.help import Group
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from sovfed.clients.training.personal import Kept

WHAT: Final = {
    "personal": "a model",
    "variate": "a control variate",
    "place": "a place, no model came",
    "moments": "an optimizer's state",
}


@click.group(cls=Group, name="personal")
def personal() -> None:
    """Personal models (strategy=ditto, fedbn, fedper): made here, kept here, never sent.

    \b
    Examples:
      sovfed client personal list
      sovfed client personal export heart-2026-11 ours.safetensors
      sovfed client personal remove heart-2025-03
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
    states = _kept(home)
    if as_json:
        rows = [
            {
                "run": state.run,
                "flower_run": state.flower_run,
                "task": state.task,
                "algorithm": state.algorithm,
                "round": state.round,
                "path": str(state.path),
            }
            for state in states
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if not states:
        click.echo("Nothing yet: personal models come of runs with strategy=ditto, fedbn or fedper.")
        return
    from sovfed.federation.tables import print_rows

    told = [
        (state.run, state.flower_run, state.task, state.algorithm, str(state.round), WHAT[state.kind])
        for state in states
    ]
    print_rows(("run", "Flower's number", "task", "strategy", "round", "what"), told)


@personal.command()
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--of", "flower_run", help="Flower's number of the run, where `list` shows several under one name.")
@HOME
def export(run: str, out: Path, flower_run: str | None, home: Path) -> None:
    """Write the personal model of RUN to OUT: a safetensors file like the published one (`model`, `scale`).

    \b
    Example:
      sovfed client personal export heart-2026-11 ours.safetensors
    """
    from safetensors.numpy import save

    from sovfed.clients.training.personal import read
    from sovfed.federation.files import write_private
    from sovfed.federation.schema import nearest

    models = [state for state in _kept(home) if state.personal and flower_run in (None, state.flower_run)]
    named = [state for state in models if state.run == run]
    if not named:
        raise DataError(f"no personal model of run '{run}' here{nearest(run, {state.run for state in models})}")
    if len(named) > 1:
        numbers = ", ".join(visible(state.flower_run) for state in named)
        raise DataError(f"run '{run}' left {len(named)} models, as Flower's runs {numbers}: choose one with --of")
    state = named[0]
    model, scale = read(state.path)
    head = {"task": state.task, "format": "flat vector: parameters in torch's order, then floating-point buffers"}
    write_private(out, save({"model": model, "scale": scale}, metadata={**head, "round": str(state.round)}))
    click.echo(f"{out}: {state.task}, {model.size} parameters, after round {state.round} ({state.algorithm})")


@personal.command()
@click.argument("run")
@HOME
def remove(run: str, home: Path) -> None:
    """Delete what RUN left here. New personal models are refused while 16 are kept: no message deletes one.

    \b
    Example:
      sovfed client personal remove heart-2025-03
    """
    from sovfed.clients.training.personal import FOLDER, PersonalStates
    from sovfed.federation.schema import nearest

    if not PersonalStates(home / FOLDER).remove(run):
        raise DataError(f"nothing of run '{run}' here{nearest(run, {state.run for state in _kept(home)})}")
    click.echo(f"deleted what run '{run}' left")


def _kept(home: Path) -> list[Kept]:
    from sovfed.clients.training.personal import FOLDER, PersonalStates

    return PersonalStates(home / FOLDER).list()
