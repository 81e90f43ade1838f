"""`sovfed task pack|review|diff|signer`: a task as one signed file, for those who publish and those who review."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.federation.asking import confirmed
from sovfed.federation.help import Group
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sovfed.federation.archive.trial import Description

HOME: Final = click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), default=Path.home() / ".sovfed" / "signer",
    show_default="~/.sovfed/signer", envvar="SOVFED_SIGNER_HOME", help="Where your signing key is.",
)  # fmt: skip
FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
UNSEALED: Final = click.option(
    "--unsealed", is_flag=True, help="Try the code also where nothing can take network and files from it."
)


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--task", default="", help="Which task, of a package that brings several.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Folder of the archive.")
@UNSEALED
@HOME
def pack(source: Path, task: str, out: Path, unsealed: bool, home: Path) -> None:
    """Pack SOURCE, a task.yaml, a wheel or a project's folder, into NAME-VERSION.sovtask, signed by you.

    The code is tried on made-up records, in a process without network that opens its own files alone.

    \b
    Examples:
      sovfed task pack birth.yaml
      sovfed task pack lab/
      sovfed task pack dist/lab-1.0-py3-none-any.whl --out packed
    """
    from sovfed.federation.archive.packing import pack as make
    from sovfed.federation.archive.signer import load_signer

    archive, description = make(source, load_signer(home), task, unsealed=unsealed)
    out.mkdir(parents=True, exist_ok=True)
    path = out / archive.file_name
    path.write_bytes(archive.to_bytes())
    _tell(_tried(description))
    click.echo(f"wrote {path}: digest {archive.manifest.digest}")
    click.echo(f"next: give it to those who review it, `sovfed task review {path}`")


@click.command()
@click.argument("file", type=FILE)
@click.option("--since", type=FILE, help="An earlier version: show what differs from it.")
@click.option("--yes", is_flag=True, help="Do not ask: it has been read.")
@UNSEALED
@HOME
def review(file: Path, since: Path | None, yes: bool, unsealed: bool, home: Path) -> None:
    """Show what is in the archive FILE, try it, and add your signature to it.

    Read its code before you say yes: whatever the trial tells, it tells what the code wants. The code will run where
    records are, and can put into its updates what it likes.

    \b
    Examples:
      sovfed task review lab-1.sovtask
      sovfed task review lab-2.sovtask --since lab-1.sovtask
    """
    from sovfed.federation.archive.archive import read_archive
    from sovfed.federation.archive.packing import trial_of
    from sovfed.federation.archive.shown import difference, shown
    from sovfed.federation.archive.signer import load_signer
    from sovfed.federation.archive.signing import REVIEWER
    from sovfed.federation.errors import PolicyError
    from sovfed.federation.files import write_atomic

    key, archive = load_signer(home), read_archive(file)
    _tell(shown(archive))
    if since is not None:
        _tell(difference(read_archive(since), archive))
    description = trial_of(archive, unsealed=unsealed)
    _tell(_tried(description))
    if not description.held:
        raise PolicyError(f"{file}: not signed, a check does not hold")
    if not yes and not confirmed(f"Have you read it, and do you sign it as {key.identity}?"):
        raise PolicyError(f"{file}: not signed")
    write_atomic(file, archive.signed(key.sign(archive.text, REVIEWER)).to_bytes())
    click.echo(f"{file}: signed as reviewed by {key.identity}")


@click.command()
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
def diff(old: Path, new: Path) -> None:
    """Show what differs between two archives: code, task.yaml, manifest.

    \b
    Example:
      sovfed task diff lab-1.sovtask lab-2.sovtask
    """
    from sovfed.federation.archive.archive import read_archive
    from sovfed.federation.archive.shown import difference

    lines = list(difference(read_archive(old), read_archive(new)))
    _tell(lines or ["nothing differs but perhaps the signatures"])


@click.group(cls=Group)
def signer() -> None:
    """Get a key to sign tasks with: the authority certifies it for you and your organisation.

    \b
    Examples:
      sovfed task signer create ann --organisation clinic-a
      sovfed authority sign ~/.sovfed/signer/request.csr --signer --out ann.pem      (the authority)
      sovfed task signer install ann.pem root.pem crl.pem
    """


@signer.command()
@click.argument("person")
@click.option("--organisation", required=True, help="Whom you work for: as an institution is called, a-z, 0-9 and '-'.")
@HOME
def create(person: str, organisation: str, home: Path) -> None:
    """Make your key, which never leaves the folder, and the request that the authority certifies.

    \b
    Example:
      sovfed task signer create ann --organisation clinic-a
    """
    from sovfed.federation.archive.signer import create_signer

    request, fingerprint = create_signer(home, person, organisation)
    click.echo(f"{request}\nkey fingerprint, to compare with the authority by telephone: {fingerprint}")
    elsewhere = "" if home == Path.home() / ".sovfed" / "signer" else f" --home {home}"
    click.echo(f"next: `sovfed authority sign {request} --signer --out {person}.pem` (--home: the authority's), then")
    click.echo(f"      `sovfed task signer install {person}.pem root.pem crl.pem{elsewhere}`")


@signer.command()
@click.argument("certificate", type=FILE)
@click.argument("root", type=FILE)
@click.argument("crl", type=FILE)
@HOME
def install(certificate: Path, root: Path, crl: Path, home: Path) -> None:
    """Install your CERTIFICATE with the authority's ROOT and revocation list CRL (all PEM), whenever one has changed.

    \b
    Example:
      sovfed task signer install ann.pem root.pem crl.pem
    """
    from sovfed.federation.archive.signer import install_signer
    from sovfed.federation.files import read_bounded

    files = [read_bounded(path) for path in (certificate, root, crl)]
    identity = install_signer(home, files[0], files[1], files[2], datetime.now(UTC))
    click.echo(f"you sign as {identity}")


def _tried(description: Description) -> Iterable[str]:
    from sovfed.federation.archive.shown import PRIVATE

    for check in description.checks:
        yield f"{'ok ' if check.held else 'NO '} {check.what}: {check.detail}"
    yield from (f"    privacy: {reason}" for reason in description.privacy)
    if description.held and not description.privacy:
        yield f"ok  privacy: {PRIVATE}"


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(visible(line))
