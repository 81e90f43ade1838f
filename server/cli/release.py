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
@click.option(
    "--declaration", "declarations", type=click.Path(exists=True, dir_okay=False, path_type=Path), multiple=True,
    help="What `client release declare` wrote at an institution; may be given several times.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a release that is there, with the signatures in it.")
@HOME
def release(
    run: str, out: Path | None, wait_s: float, declarations: tuple[Path, ...], force: bool, home: Path
) -> None:  # fmt: skip
    """Release the model of a finished RUN: model, lineage, privacy, evaluation, log and signatures in one file.

    Nothing is released before the audits of server.release_audits have passed on the model, after an institution has
    withdrawn from the run, or where fewer than server.release_cosigners have cosigned the log.

    \b
    Examples:
      sovfed release heart-20260301-101500-1f2e --out heart.release
      sovfed verify heart.release --root root.pem          (anybody, anywhere)
      sovfed release heart-2027 --declaration hospital-1.declaration
      sovfed client release sign heart.release             (each institution that took part)
    """
    from sovfed.federation.errors import ConfigError
    from sovfed.federation.files import check_writable, write_atomic
    from sovfed.federation.slow import said_if_slow
    from sovfed.server.runs.certificate import release as make
    from sovfed.server.runs.declarations import take
    from sovfed.server.runs.tracking import approve

    os.umask(0o077)
    path = out or Path(f"{run}.release")
    check_writable(path)
    if path.exists() and not force:
        raise ConfigError(f"{path} exists, and institutions may have signed it; another --out, or --force")
    for file in declarations:
        click.echo(f"{file}: what {take(home, run, file)} declares of its records")
    with said_if_slow(f"gathering the run's records; institutions have {wait_s:g} s at most to cosign the log"):
        write_atomic(path, make(home, run, wait_s=wait_s))
    for line in approve(home, run):
        click.echo(line, err=True)
    click.echo(f"wrote {path}; `sovfed verify {path} --root root.pem` checks it")
