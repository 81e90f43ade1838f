"""`sovfed evidence`: the table of a framework, filled from this home."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--framework", "name", required=True, help="sp800-226, satre, tehdas2 or dspt.")
@click.option(
    "--home", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The agency's or an institution's home, whose settings and log fill it; without: what holds in general.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def evidence(name: str, home: Path | None, as_json: bool) -> None:
    """Print what there is to show for each control of a framework: settings, entries of the log, tests, what is left.

    It judges nothing: whether a control is met is for people. The wording of the controls is ours.

    \b
    Examples:
      sovfed evidence --framework sp800-226 --home ~/.sovfed/client
      sovfed evidence --framework dspt --json
    """
    from dataclasses import asdict

    from sovfed.federation.evidence.frameworks.table import as_markdown, filled, load_framework
    from sovfed.federation.text import visible

    framework = load_framework(name)
    rows = list(filled(framework, home))
    if as_json:
        values = [{**asdict(row.control), "settings": row.settings, "log": row.log} for row in rows]
        click.echo(
            json.dumps({"framework": name, "title": framework.title, "rows": values}, indent=2, ensure_ascii=False)
        )
        return
    for line in as_markdown(framework, rows, home):
        click.echo(visible(line))
