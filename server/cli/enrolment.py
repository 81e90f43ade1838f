"""`sovfed server invite`, `admit`, `requests`, `accept`, `remove`: which institutions are in the federation."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Final

import click

from sovfed.server.cli.home import HOME, JSON

PEM: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("name")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it to this new file, which only you can read."
)
@HOME
def invite(name: str, out: Path | None, home: Path) -> None:
    """Make an invitation for institution NAME: the server's address, the authority's root and a one-time token.

    The token is a secret: whoever has it first enrols as NAME. Without --out it is printed; a shell's `>` would leave
    it to everybody on this machine.

    \b
    Example:
      sovfed server invite hospital-1 --out hospital-1.invitation
    """
    from sovfed.federation.files import create_private
    from sovfed.server.registry.enrolment import invite

    if out is None:
        click.echo(invite(home, name).to_json())
        return
    with create_private(out) as file:  # refused before a token is made
        file.write(invite(home, name).to_json().encode())
    click.echo(f"wrote {out}: give it to {name} by a way that nobody else reads")


@click.command()
@click.argument("name")
@click.option(
    "--authority", "authority_home", type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=Path("authority"), show_default=True, envvar="SOVFED_AUTHORITY_HOME",
    help="The authority's folder, where its key is on this machine.",
)  # fmt: skip
@click.option("--key", help="The authority's yes: the fingerprint that the institution told; another is refused.")
@click.option("--yes", is_flag=True, help="The authority's yes: it has compared the fingerprint with the institution.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The invitation's file, else NAME.invitation."
)
@click.option("--wait/--no-wait", default=True, help="Wait for the institution's request.")
@HOME
def admit(
    name: str, authority_home: Path, key: str | None, yes: bool, out: Path | None, wait: bool, home: Path
) -> None:  # fmt: skip
    """Admit institution NAME: invitation, its request, the authority's own yes, acceptance; go on where that was.

    Where the authority's key is not at hand, it says what the authority has to type on its machine.

    \b
    Examples:
      sovfed server admit hospital-1 --authority /srv/authority
      sovfed server admit hospital-1 --key 9a31…          no question: the fingerprint was told before
      sovfed server admit hospital-1 --no-wait            only the invitation, or what waits
    """
    from sovfed.server.cli.admit import admit as take_in

    timeout_s = float("inf") if wait else 0.0
    take_in(home, name, authority_home=authority_home, key=key, yes=yes, out=out, timeout_s=timeout_s)


@click.command()
@HOME
@JSON
def requests(home: Path, as_json: bool) -> None:
    """List invitations that are open and requests that wait: since when, with which fingerprint, and what is next.

    \b
    Example:
      sovfed server requests
    """
    from sovfed.server.registry.enrolment import waiting

    entries = waiting(home)
    if as_json:
        click.echo(json.dumps([{**dataclasses.asdict(entry), "path": str(entry.path or "")} for entry in entries]))
    for line in () if as_json else waiting_lines(home) or ["no request waits"]:
        click.echo(line)


@click.command()
@click.argument("certificate", type=PEM)
@HOME
def accept(certificate: Path, home: Path) -> None:
    """Put a CERTIFICATE in that the authority has signed; the waiting institution receives it and may connect.

    \b
    Example:
      sovfed server accept hospital-1.pem
    """
    from sovfed.server.registry.enrolment import accept_certificate

    name = accept_certificate(home, certificate.read_bytes())
    click.echo(f"{name} is enrolled; it connects with `sovfed client up`")


@click.command()
@click.argument("name")
@HOME
def remove(name: str, home: Path) -> None:
    """Forget institution NAME, so that it may be invited anew. To shut it out, have the authority revoke it too.

    \b
    Example:
      sovfed server remove hospital-1
    """
    from sovfed.server.home import load_settings
    from sovfed.server.registry.enrolment import remove
    from sovfed.server.runs.control import ControlClient

    node_id = remove(home, name)
    if node_id is not None:
        with ControlClient(home, load_settings(home).server.control_port) as control:
            control.unregister_node(node_id)
    click.echo(f"{name} is forgotten; `sovfed authority revoke {name}` and `sovfed server crl` shut it out for good")


def waiting_lines(home: Path) -> list[str]:
    """Whoever is not in yet, two lines each: since when and with which key, and the next step."""
    from sovfed.server.cli.admit import age, next_step
    from sovfed.server.registry.enrolment import waiting

    lines, now = [], time.time()
    for entry in waiting(home):
        if entry.state == "invited":
            until = f"for {age(entry.since - now)} more" if entry.since > now else "which has ended"
            lines.append(f"{entry.name}: invited, {until}")
        else:
            since = f"since {age(now - entry.since)}" if entry.since else "since long"
            lines.append(f"{entry.name}: {entry.state} {since}, key {entry.key}")
        lines.append(f"  next: {next_step(entry, home)}")
    return lines
