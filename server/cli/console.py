"""`sovfed server console`: the agency's web page, and who may open it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from sovfed.federation.asking import ask_secret
from sovfed.federation.errors import ConfigError
from sovfed.federation.help import Group
from sovfed.server.cli.home import HOME


@click.group(cls=Group, invoke_without_command=True)
@click.option("--port", type=click.IntRange(1, 65_535), help="Default: server.console_port, else 8448.")
@HOME
@click.pass_context
def console(ctx: click.Context, port: int | None, home: Path) -> None:
    """Serve the agency's web page until Ctrl-C; `sovfed server up` does so where server.console_port is set.

    On the loopback, where `ssh -L 8448:127.0.0.1:8448 AGENCY` reaches it, unless server.console_host says otherwise.

    \b
    Examples:
      sovfed server console user add anna --role operator
      sovfed server console
    """
    if ctx.invoked_subcommand is not None:
        return
    from sovfed.federation.host.extras import require
    from sovfed.federation.host.logs import log_to_stderr
    from sovfed.federation.host.ports import check_port
    from sovfed.server.console.process import PORT, serve
    from sovfed.server.console.users import read_users
    from sovfed.server.home import load_settings

    require("server")
    config = load_settings(home).server
    if not read_users(home):
        raise ConfigError(f"nobody may open it yet: `sovfed server console user add NAME --home {home}`")
    chosen = dataclasses.replace(config, console_port=port or config.console_port or PORT)
    check_port(chosen.console_host, chosen.console_port)
    log_to_stderr()
    serve(home, chosen, lambda address: click.echo(f"{address}  (Ctrl-C stops)"))


@console.group()
def user() -> None:
    """Add, list and remove those who may open the page.

    \b
    Examples:
      sovfed server console user add anna --role operator
      sovfed server console user list
      sovfed server console user remove anna
    """


@user.command()
@click.argument("name")
@click.option(
    "--role", type=click.Choice(["viewer", "operator"]), default="viewer", show_default=True,
    help="An operator may stop and resume runs.",
)  # fmt: skip
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking for it.")
@HOME
def add(name: str, role: str, password_stdin: bool, home: Path) -> None:
    """Let NAME open the page, or give them another role or password. The password is asked for, never an argument.

    \b
    Example:
      sovfed server console user add anna --role operator
    """
    from sovfed.server.console.users import add_user
    from sovfed.server.home import load_settings

    load_settings(home)  # says what is missing
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = ask_secret("password", "--password-stdin, or a terminal", twice=True)
    add_user(home, name, role, password)
    click.echo(f"{name} may open it as {role}")


@user.command(name="list")
@HOME
def list_users(home: Path) -> None:
    """Show who may open the page.

    \b
    Example:
      sovfed server console user list
    """
    from sovfed.server.console.users import read_users

    for name, entry in sorted(read_users(home).items()):
        click.echo(f"{name}  {entry.role}")


@user.command()
@click.argument("name")
@HOME
def remove(name: str, home: Path) -> None:
    """Let NAME open the page no longer; an open session ends with its next request.

    \b
    Example:
      sovfed server console user remove anna
    """
    from sovfed.server.console.users import remove_user

    remove_user(home, name)
    click.echo(f"{name} is removed")
