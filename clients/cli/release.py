"""`sovfed client release`: the institution's own signature under a release that it took part in."""

from __future__ import annotations

from pathlib import Path

import click

from sovfed.clients.cli.home import HOME

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def release() -> None:
    """Sign releases that this institution took part in.

    \b
    Example:
      sovfed client release sign heart.release
    """


@release.command()
@click.argument("bundle", type=FILE)
@HOME
def sign(bundle: Path, home: Path) -> None:
    """Check the release BUNDLE and add this institution's signature to it.

    \b
    Example:
      sovfed client release sign heart.release      (then `sovfed verify heart.release --root root.pem`)
    """
    from sovfed.clients.models.released import signed_release
    from sovfed.federation.files import write_atomic

    write_atomic(bundle, signed_release(home, bundle.read_bytes()))
    click.echo(f"{bundle} is signed by this institution too")
