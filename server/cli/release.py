"""`sovfed release`: a run's model, with all that is said of it, in one signed file."""

from __future__ import annotations

import os
from pathlib import Path

import click

from sovfed.server.cli.home import HOME


@click.command()
@click.argument("run")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The new file, else RUN.release.")
@click.option("--wait", "wait_s", default=20.0, show_default=True, help="Seconds for institutions to cosign the log.")
@HOME
def release(run: str, out: Path | None, wait_s: float, home: Path) -> None:
    """Release the model of a finished RUN: model, lineage, privacy, evaluation, log and signatures in one file.

    \b
    Examples:
      sovfed release heart-20260301-101500-1f2e --out heart.release
      sovfed verify heart.release --root root.pem          (anybody, anywhere)
      sovfed client release sign heart.release             (each institution that took part)
    """
    from sovfed.federation.files import check_writable, write_atomic
    from sovfed.server.runs.certificate import release as make
    from sovfed.server.runs.tracking import approve

    os.umask(0o077)
    path = out or Path(f"{run}.release")
    check_writable(path)
    write_atomic(path, make(home, run, wait_s=wait_s))
    for line in approve(home, run):
        click.echo(line, err=True)
    click.echo(f"wrote {path}; `sovfed verify {path} --root root.pem` checks it")
