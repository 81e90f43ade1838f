"""`sovfed client evaluations`: what the candidates of evaluations are worth on this institution's own records."""

from __future__ import annotations

import json
from pathlib import Path

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.text import visible


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@HOME
def evaluations(as_json: bool, home: Path) -> None:
    """Show what models that were scored here are worth on the own held-out records. Nobody else is told these figures.

    \b
    Example:
      sovfed client evaluations
    """
    from sovfed.clients.statistics.scores import scores_in

    runs = scores_in(home / "received")
    if as_json:
        click.echo(json.dumps(runs, indent=2))
        return
    for run in runs:
        click.echo(visible(f"{run['run']}  task {run['task']}"))
        for digest, figures in run["models"].items():
            told = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            click.echo(visible(f"  model {digest[:12]}…  {told}"))
    if not runs:
        click.echo("Nothing yet: models are scored in runs of `sovfed evaluate`.")
