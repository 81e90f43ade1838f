"""`sovfed config`: the configuration of a run, and who chose what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovfed.federation.help import Group

if TYPE_CHECKING:
    from rich.table import Table

    from sovfed.federation.compose import Composed


@click.group(cls=Group)
def config() -> None:
    """Show the configuration and where each value comes from.

    \b
    Examples:
      sovfed config show                          what runs when nothing is chosen
      sovfed config show task=heart rounds=20     with overrides, as for `sovfed run start`
      sovfed config show strategy=fedadam --json  for machines
      sovfed config options                       the groups and what can be chosen
    """


@config.command()
@click.argument("overrides", nargs=-1)
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder with further options, as conf/ has them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: {config, origins}.")
def show(overrides: tuple[str, ...], config_dir: Path | None, as_json: bool) -> None:
    """Print the composed configuration and who chose what.

    \b
    Examples:
      sovfed config show
      sovfed config show task=heart data.path=/srv/heart strategy=fedprox
      sovfed config show --config-dir ./conf task=mine
    """
    from sovfed.federation.compose import compose
    from sovfed.federation.config import stored

    composed = compose(overrides, config_dir)
    if as_json:
        click.echo(json.dumps({"config": stored(composed.config), "origins": dict(composed.origins)}, indent=2))
        return
    from rich.console import Console

    Console().print(_table(composed))


def _table(composed: Composed) -> Table:
    """The configuration as YAML in the first column, who chose each value in the second."""
    from rich.table import Table
    from rich.text import Text

    from sovfed.federation.compose import DEFAULT, OVERRIDE, leaves
    from sovfed.federation.config import told

    styles = {DEFAULT: "dim", OVERRIDE: "bold green"}
    table = Table("configuration", "chosen by", box=None, pad_edge=False)
    above: list[str] = []
    for key, value in leaves(told(composed.config)):
        *path, name = key.split(".")
        for depth, group in enumerate(path):
            if path[: depth + 1] != above[: depth + 1]:
                table.add_row(Text(f"{'  ' * depth}{group}:", style="bold"), "")
        above = path
        origin = composed.origins[key]
        line = Text(f"{'  ' * len(path)}{name}: {json.dumps(value)}", style=styles.get(origin, ""))
        table.add_row(line, Text(origin, style=styles.get(origin, "cyan")))
    return table


@config.command()
@click.option("--config-dir", type=click.Path(path_type=Path), help="Folder with further options, as conf/ has them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: {group: [option, …]}.")
def options(config_dir: Path | None, as_json: bool) -> None:
    """List what GROUP=OPTION can choose.

    \b
    Example:
      sovfed config options
    """
    from sovfed.federation.compose import PACKAGED, groups

    by_group = groups([PACKAGED] if config_dir is None else [PACKAGED, config_dir])
    if as_json:
        click.echo(json.dumps(by_group, indent=2))
        return
    width = max(map(len, by_group))
    for group, names in by_group.items():
        click.echo(f"{group.ljust(width)}  {', '.join(names)}")
