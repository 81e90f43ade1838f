"""`sovfed client enrol`, `renew`: the institution's certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sovfed.clients.cli.home import HOME
from sovfed.clients.cli.join import announce

WAIT: Final = click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds to wait.")


@click.command()
@click.argument("invitation", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--authority", help="The root's fingerprint as the authority itself gave it; another root is refused.")
@WAIT
@HOME
def enrol(invitation: Path, authority: str | None, timeout_s: float, home: Path) -> None:
    """Make this institution's keys here and have them certified, with the agency's INVITATION file.

    Waits until the authority has signed; when interrupted, repeat the command.

    \b
    Example:
      sovfed client enrol hospital-1.invitation --authority 5f2c…
    """
    from sovfed.clients.home.folder import proxy_setting
    from sovfed.clients.node.enrol import enrol as request_certificate
    from sovfed.federation.wire.enrolment import Invitation

    invited = Invitation.from_json(invitation.read_text(encoding="utf-8"))
    proxy = proxy_setting(home)
    identity = request_certificate(home, invited, timeout_s, authority=authority, announce=announce, proxy=proxy)
    click.echo(f"enrolled as {identity.name}; `sovfed client up --home {home}` starts the node")


@click.command()
@WAIT
@HOME
@click.option("--new-key", is_flag=True, help="Have a new key certified; without it, the key stays.")
def renew(timeout_s: float, new_key: bool, home: Path) -> None:
    """Have the certificate renewed now. A node that runs does so by itself, and needs no restart.

    \b
    Example:
      sovfed client renew
    """
    from sovfed.clients.home.folder import load_config
    from sovfed.clients.node.renewal import renew as request_renewal

    config = load_config(home)
    way = {"proxy": config.proxy, "lane": config.lane_address}
    until = request_renewal(home, timeout_s, announce=announce, new_key=new_key, **way)
    click.echo(f"valid until {until:%F}")
