"""`sovfed server`: set up and run the agency's aggregation server."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovfed.federation.errors import ServiceError
from sovfed.federation.evidence.cli import log_commands
from sovfed.federation.help import Group
from sovfed.federation.host.service_options import options as service_options
from sovfed.federation.text import visible
from sovfed.server.cli.console import console
from sovfed.server.cli.enrolment import PEM, accept, admit, invite, remove, requests, waiting_lines
from sovfed.server.cli.home import HOME, JSON

if TYPE_CHECKING:
    from sovfed.federation.evidence.retention import Terms


@click.group(cls=Group, name="server")
def cli() -> None:
    """Set up and run the agency's aggregation server.

    \b
    First time (the authority may be another machine; files travel by hand):
      sovfed server init server.names='[agency.example]' server.host=0.0.0.0
      sovfed authority sign ~/.sovfed/server/identity/server.csr --server --out server.pem
      sovfed server certificate server.pem root.pem crl.pem
      sovfed server up
    \b
    For each institution, one command, which writes its invitation, waits for its request and asks the authority:
      sovfed server admit hospital-1 --authority DIR              (there: `sovfed client join hospital-1.invitation`)
    \b
    Step by step, as where the authority is another machine:
      sovfed server invite hospital-1 --out hospital-1.invitation  (give it to the hospital, and to nobody else)
      sovfed server requests                                      (what waits, since when, with its fingerprint)
      sovfed authority sign REQUEST --out hospital-1.pem
      sovfed server accept hospital-1.pem
    \b
    Revocation lists end after 30 days, and all trust with them; new ones come by hand, or by themselves:
      sovfed server crl crl.pem                                   (takes effect at once)
      `crl_source` in server.json: "/srv/authority/crl.pem"       (looked at while the server runs)
    """
    os.umask(0o077)  # databases and logs that libraries make are the owner's too


def log_terms(home: Path) -> Terms:
    """How long the log of `home` is kept."""
    from sovfed.server.orders.retained import terms

    return terms(home)


cli.add_command(accept)
cli.add_command(admit)
cli.add_command(console)
cli.add_command(invite)
cli.add_command(log_commands(HOME, "server", log_terms))
cli.add_command(remove)
cli.add_command(requests)


@cli.command()
@click.argument("overrides", nargs=-1)
@HOME
def init(overrides: tuple[str, ...], home: Path) -> None:
    """Create the home folder, the server's key and a certificate request. OVERRIDES set `server.…` and `tracking.…`.

    With server.min_approvers=2 no run begins before two people of the agency have approved its order.

    \b
    Examples:
      sovfed server init --home agency server.host=fed.example.org
      sovfed server init server.names='[agency.example]' server.host=0.0.0.0
      sovfed server init --home agency server.min_cohort=4   # four institutions
      sovfed server init --home agency server.min_approvers=2 server.approvers='[agency]'
    """
    from sovfed.federation.compose import compose
    from sovfed.federation.orders.approving import bound_line
    from sovfed.server import home as agency

    config = compose(list(overrides)).config
    request = agency.init(home, config)
    click.echo(f"{request}")
    click.echo(bound_line(config.server), err=True)
    click.echo(
        f"next: `sovfed authority sign {request} --server --out server.pem` (--home: the authority's), then\n"
        f"      `sovfed server certificate server.pem root.pem crl.pem --home {home}`",
        err=True,
    )


@cli.command()
@click.argument("certificate", type=PEM)
@click.argument("root", type=PEM)
@click.argument("crl", type=PEM)
@HOME
def certificate(certificate: Path, root: Path, crl: Path, home: Path) -> None:
    """Install the signed CERTIFICATE with the authority's ROOT and revocation list CRL (all PEM).

    \b
    Example:
      sovfed server certificate server.pem root.pem crl.pem --home agency
    """
    from sovfed.server.home import install_certificate

    install_certificate(home, certificate.read_bytes(), root.read_bytes(), crl.read_bytes())
    click.echo(f"installed; start the server with `sovfed server up --home {home}`")


@cli.command()
@click.argument("crl", type=PEM)
@HOME
def crl(crl: Path, home: Path) -> None:
    """Install a newer revocation list; running processes take it at once.

    \b
    Example:
      sovfed server crl crl.pem
    """
    from sovfed.server.home import take_crl

    take_crl(home, crl.read_bytes())
    click.echo("installed")


@cli.group()
def task() -> None:
    """Add and list tasks that are a signed archive (.sovtask): `sovfed run start task=NAME` then trains them.

    \b
    Examples:
      sovfed server task add lab-1.sovtask
      sovfed server task list
    """


@task.command(name="add")
@click.argument("file", type=PEM)
@HOME
def add_task(file: Path, home: Path) -> None:
    """Check signatures, reviews and every byte of the archive FILE, try its code apart, and keep it.

    \b
    Example:
      sovfed server task add lab-1.sovtask
    """
    from sovfed.server.own_tasks import added

    for line in added(home, file):
        click.echo(visible(line))


@task.command(name="list")
@HOME
def list_tasks(home: Path) -> None:
    """The archives in this home, the oldest first.

    \b
    Example:
      sovfed server task list
    """
    from sovfed.server.own_tasks import listed

    for line in listed(home):
        click.echo(visible(line))


@cli.command()
@click.option("--detach", is_flag=True, help="Return once everything runs; `sovfed server down` stops it.")
@HOME
def up(detach: bool, home: Path) -> None:
    """Run superlink, registry, executor and (if tracking.serve) MLflow's page; restart what dies. Ctrl-C stops all.

    \b
    Example:
      sovfed server up --detach --home agency
    """
    from sovfed.federation.host.extras import require
    from sovfed.server.up import supervise

    require("server")
    supervise(home, detach)


@cli.command("install-service")
@service_options
@HOME
def install_service(user: str, name: str, folder: Path, start: bool, show: bool, home: Path) -> None:
    """Have systemd keep the server up: from the machine's start on, whatever happens to it.

    \b
    Examples:
      sovfed server install-service --home /srv/sovfed --print
      sudo sovfed server install-service --home /srv/sovfed --user sovfed
    """
    from sovfed.federation.host.service_options import carry_out
    from sovfed.federation.host.units import service

    carry_out([service("server", home, user=user, name=name)], folder, start=start, show=show)


@cli.command()
@HOME
def down(home: Path) -> None:
    """Stop a server that was started with `up --detach`.

    \b
    Example:
      sovfed server down --home agency
    """
    from sovfed.federation.host.processes import stop_supervisor
    from sovfed.federation.host.service_options import refuse_to_stop_a_service

    refuse_to_stop_a_service(home)
    click.echo("stopped" if stop_supervisor(home) else "it was not running")


@cli.command()
@HOME
@JSON
def status(home: Path, as_json: bool) -> None:
    """Show the server's processes and the institutions that are connected (exit code 4: not running).

    \b
    Example:
      sovfed server status --home agency
    """
    from sovfed.federation.evidence.witness import problems
    from sovfed.federation.host.processes import read_status
    from sovfed.federation.orders.approving import bound_line
    from sovfed.server.home import load_settings
    from sovfed.server.orders.purging import unpurged
    from sovfed.server.registry.enrolment import waiting
    from sovfed.server.runs.awaiting import waiting_runs
    from sovfed.server.runs.control import ControlClient

    server_status, server = read_status(home), load_settings(home).server
    control = ControlClient(home, server.control_port)
    nodes = control.list_nodes() if server_status and control.alive() else []  # or another's server holds the port
    runs_waiting, permits = waiting_runs(home, nodes), [*unpurged(home, time.time())]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "processes": [dataclasses.asdict(process) for process in server_status.processes]
                    if server_status
                    else [],
                    "institutions": [{"name": n.name, "status": n.status, "node_id": n.node_id} for n in nodes],
                    "waiting": [
                        {**dataclasses.asdict(entry), "path": str(entry.path or "")} for entry in waiting(home)
                    ],
                    "fingerprints": _fingerprints(home),
                    "runs_waiting": {name: lines for name, _, lines in runs_waiting},
                    "logs": problems(home),
                    "approvals": {"min_approvers": server.min_approvers, "approvers": server.approvers},
                    "permits": permits,
                },
                indent=2,
            )
        )
    elif server_status:
        from rich.console import Console
        from rich.table import Table

        from sovfed.federation.tables import print_rows

        processes = Table("process", "state", "pid", "restarts", title=str(home))
        for process in server_status.processes:
            processes.add_row(process.name, process.state, str(process.pid), str(process.restarts))
        Console().print(processes)
        print_rows(("institution", "status", "node"), [(node.name, node.status, str(node.node_id)) for node in nodes])
        fingerprints = (f"{what}: {digest}" for what, digest in _fingerprints(home).items())
        logs = [visible(f"{why}; `sovfed server log heads` tells more") for why in problems(home).values()]
        told = (*server_status.complaints, *logs, *map(visible, permits), *waiting_lines(home))
        for line in (*told, bound_line(server), *fingerprints):
            click.echo(line)
        for name, state, lines in runs_waiting:
            click.echo("\n  ".join([f"run {visible(name)}: {state}", *map(visible, lines)]))
    if server_status is None:
        raise ServiceError(f"the server at {home} is not running; `sovfed server up --home {home}` starts it")


@cli.command()
@HOME
def fingerprint(home: Path) -> None:
    """Print the fingerprints of this server's key, which the authority compares, and of the authority's root.

    \b
    Example:
      sovfed server fingerprint
    """
    for what, digest in _fingerprints(home).items():
        click.echo(f"{what:17} SHA-256 {digest}")


@cli.command()
@click.argument("name", type=click.Choice(["superlink", "registry", "executor", "mlflow", "console"]))
@click.option("--lines", default=50, show_default=True, help="How many of the last lines.")
@HOME
def logs(name: str, lines: int, home: Path) -> None:
    """Print the last lines of one process's log.

    \b
    Example:
      sovfed server logs executor --lines 200
    """
    path = home / "logs" / f"{name}.log"
    if not path.exists():
        raise ServiceError(f"{path} is not there; has the server been started?")
    for line in path.read_text(errors="replace").rstrip("\n").split("\n")[-lines:]:
        click.echo(visible(line))


def _fingerprints(home: Path) -> dict[str, str]:
    """Of the server's key, and of the authority's root once that is here."""
    from sovfed.federation.certificates import certificate_fingerprint, key_fingerprint, key_from_pem
    from sovfed.federation.files import read_private
    from sovfed.federation.identity import load_roots

    identity = home / "identity"
    key = key_from_pem(read_private(identity / "key.pem"), str(identity / "key.pem"))
    prints = {"this server's key": key_fingerprint(key.public_key())}
    if (identity / "root.pem").exists():
        prints["authority's root"] = certificate_fingerprint(load_roots(identity / "root.pem")[0])
    return prints
