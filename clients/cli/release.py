"""`sovfed client release`: the institution's own signature under a release that it took part in."""

from __future__ import annotations

from pathlib import Path

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.help import Group

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Group)
def release() -> None:
    """Declare what was trained on here, hold releases to this institution's own books, and sign them.

    \b
    Example:
      sovfed client release sign heart.release
    """


@release.command()
@click.argument("order")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The new file, else RUN.declaration.")
@HOME
def declare(order: str, out: Path | None, home: Path) -> None:
    """Sign what the run of ORDER was trained on here, as client.yaml describes its study (`content`), for the release.

    No record or person is in it, and about how many there are only if policy.yaml says `declare_size`.

    \b
    Example:
      sovfed client release declare heart-2027 --out hospital-1.declaration     (then send it to the agency)
    """
    from sovfed.clients.models.declared import declare as signed
    from sovfed.clients.orders.book import OrderBook
    from sovfed.federation.files import check_new, write_private
    from sovfed.federation.text import visible

    proposed = OrderBook(home).make().named(order).order
    path = out or Path(f"{proposed.run}.declaration")
    check_new(path)
    declaration = signed(home, proposed)
    write_private(path, declaration.to_bytes())
    click.echo(visible(declaration.told()))
    click.echo(f"wrote {path}; `sovfed release {visible(proposed.run)} --declaration …` puts it into the release")


@release.command()
@click.argument("bundle", type=FILE)
@HOME
def compare(bundle: Path, home: Path) -> None:
    """Hold the release BUNDLE to this institution's own books: its word on the order, its rounds (exit code 3: not so).

    Also for who has refused and took no part: an agency that leaves that out of its log is told.

    \b
    Example:
      sovfed client release compare heart.release
    """
    from sovfed.clients.models.compared import differences
    from sovfed.federation.errors import EvidenceError
    from sovfed.federation.files import read_whole
    from sovfed.federation.identity import load_roots
    from sovfed.federation.release.checking import LARGEST, check_release

    data = read_whole(bundle, LARGEST)
    verdict = check_release(data, load_roots(home / "identity" / "root.pem"))
    if said := differences(home, verdict):
        raise EvidenceError("; ".join(said))
    click.echo("the release says of this institution what its own books say")


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
    from sovfed.federation.files import read_whole, write_atomic
    from sovfed.federation.release.checking import LARGEST

    write_atomic(bundle, signed_release(home, read_whole(bundle, LARGEST)))
    click.echo(f"{bundle} is signed by this institution too")
