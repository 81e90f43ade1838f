"""`sovfed evaluate`: models scored side by side on the held-out records of all institutions."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sovfed.server.cli.home import HOME, JSON


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--task", "task", required=True, help="The task whose held-out records they are scored on.")
@click.option("--set", "overrides", multiple=True, help="A setting of the run, as in --set order.purpose=…")
@click.option("--propose", is_flag=True, help="Make the order only, for people of the agency to approve.")
@click.option("--follow/--no-follow", default=True, help="Wait for the end (Ctrl-C only stops watching).")
@HOME
@JSON
@click.pass_context
def evaluate(
    context: click.Context,
    models: tuple[Path, ...],
    task: str,
    overrides: tuple[str, ...],
    propose: bool,
    follow: bool,
    home: Path,
    as_json: bool,
) -> None:
    """Score MODELS, files or folders of `model.safetensors`, side by side on held-out records of all institutions.

    Institutions are shown an order that names each model by its digest. `sovfed run table RUN` shows the scores and
    signs them; each institution sees its own with `sovfed client evaluations`.

    \b
    Examples:
      sovfed evaluate ours/ theirs/ --task heart --set run_name=choice
      sovfed evaluate ours/ --task heart --set privacy=distributed
      sovfed run table choice --out choice.table
      sovfed verify choice.table --root root.pem
    """
    from sovfed.server.cli.orders import propose as propose_run
    from sovfed.server.cli.run import start

    paths = json.dumps([str(model.absolute()) for model in models], ensure_ascii=False)  # which may hold commas
    asked = (f"task={task}", f"evaluate={paths}", *overrides)
    if propose:
        context.invoke(propose_run, overrides=asked, home=home)
    else:
        context.invoke(start, overrides=asked, proposed="", follow=follow, home=home, as_json=as_json)
