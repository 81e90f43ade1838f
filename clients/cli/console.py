"""`sovfed client console`: a page about what left this house, on which an officer may sign if the policy says so."""

from __future__ import annotations

from pathlib import Path

import click

from sovfed.clients.cli.home import HOME


@click.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=8449, show_default=True, help="On the loopback only.")
@HOME
def console(port: int, home: Path) -> None:
    """Serve a page until Ctrl-C: what left this house, run by run, orders, status and studies.

    The browser asks for a user, `institution`, and the password that lies in the home's console.password. It
    changes nothing, unless policy.yaml lets officers sign orders on it (orders: sign_in_console).

    \b
    Examples:
      sovfed client console
      ssh -L 8449:127.0.0.1:8449 NODE   then http://127.0.0.1:8449
    """
    from sovfed.clients.console.app import PASSWORD, USER, serve
    from sovfed.clients.home.folder import load_config
    from sovfed.federation.host.logs import log_to_stderr
    from sovfed.federation.host.ports import check_port

    load_config(home)  # says what is missing
    check_port("127.0.0.1", port)
    log_to_stderr()
    click.echo(f"http://127.0.0.1:{port}  user {USER}, password in {home / PASSWORD}  (Ctrl-C stops)")
    serve(home, port)
