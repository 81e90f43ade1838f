"""`sovfed run table`: what a run has counted, for people and for machines, and as a signed file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from sovfed.federation.text import visible
from sovfed.server.cli.home import HOME, JSON


@click.command()
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it signed into this new file.")
@HOME
@JSON
def table(run: str, out: Path | None, home: Path, as_json: bool) -> None:
    """Show the table of RUN, which counted rather than trained.

    \b
    Examples:
      sovfed run start task=heart statistics="age, sex*target" run_name=heart-counts
      sovfed run table heart-counts
      sovfed run table heart-counts --out heart-counts.table
      sovfed verify heart-counts.table --root root.pem     (anybody, anywhere)
    """
    from sovfed.federation.files import check_new, write_atomic
    from sovfed.federation.statistics.shown import lines_of
    from sovfed.server.runs.sheet import signed_table, table_in

    content = table_in(home, run)
    if as_json:
        click.echo(json.dumps(content, indent=2))
    else:
        for line in lines_of(content["table"]):
            click.echo(visible(line))
    if out is not None:
        os.umask(0o077)
        check_new(out)
        write_atomic(out, signed_table(home, run))
        click.echo(f"wrote {out}; `sovfed verify {out} --root root.pem` checks it", err=True)
