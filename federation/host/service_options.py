"""The options of `install-service`, which every role has, and what is done with the units."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sovfed.federation.errors import ServiceError
from sovfed.federation.host.status import read_status
from sovfed.federation.host.units import FOLDER, Unit, install, kept_up_by

if TYPE_CHECKING:
    from collections.abc import Callable


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --user, --name, --folder, --start/--no-start and --print to a command."""
    for option in (
        click.option("--print", "show", is_flag=True, help="Print what would be written; nothing is done."),
        click.option("--start/--no-start", default=True, help="Start it, now and with the machine."),
        click.option(
            "--folder", type=click.Path(path_type=Path, file_okay=False), default=FOLDER, show_default=True,
            help="Where the unit is written.",
        ),
        click.option("--name", default="", help="The service's name, where a machine has several of a role."),
        click.option("--user", default="", help="Who runs it, by name or number.  [default: the home's owner]"),
    ):  # fmt: skip
        command = option(command)
    return command


def carry_out(units: list[Unit], folder: Path, *, start: bool, show: bool) -> None:
    """Print or install `units` and say what was done."""
    if show:
        click.echo("\n".join(unit.text for unit in units), nl=False)
        return
    install(units, folder, start=start)
    names = " and ".join(str(folder / unit.name) for unit in units)
    click.echo(f"wrote {names}" + (f"; `systemctl status {units[-1].name}`" if start else ""))
    if any("\nUser=root\n" in unit.text for unit in units):
        click.echo("it runs as root: make a user of its own, give it the home folder, and say --user", err=True)


def refuse_to_stop_a_service(home: Path) -> None:
    """Raises ServiceError if systemd would start again what `down` is to stop."""
    status = read_status(home)
    service = kept_up_by(status.pid) if status is not None else ""
    if service:
        raise ServiceError(f"{service} would start it again; `systemctl stop {service}` stops it")
