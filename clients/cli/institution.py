"""`sovfed client`: set up and run an institution's node."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.clients.cli.console import console
from sovfed.clients.cli.data import check_data
from sovfed.clients.cli.enrol import enrol, renew
from sovfed.clients.cli.evaluations import evaluations
from sovfed.clients.cli.failures import failures
from sovfed.clients.cli.home import HOME
from sovfed.clients.cli.join import join
from sovfed.clients.cli.ledger import ledger
from sovfed.clients.cli.model import model
from sovfed.clients.cli.orders import orders, purge
from sovfed.clients.cli.personal import personal
from sovfed.clients.cli.policy_options import policy_options
from sovfed.clients.cli.release import release
from sovfed.clients.cli.statistics import statistics
from sovfed.clients.cli.study import study
from sovfed.clients.cli.table import table
from sovfed.clients.cli.task import task
from sovfed.clients.cli.texts import data
from sovfed.federation.evidence.cli import log_commands
from sovfed.federation.help import Group
from sovfed.federation.host.service_options import options as service_options
from sovfed.federation.slow import said_if_slow
from sovfed.federation.text import day, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from sovfed.clients.home.begin import Chosen
    from sovfed.federation.evidence.retention import Terms
    from sovfed.federation.host.status import Status

NOT_RUNNING: Final = 4
NEAR_SHOWN: Final = 20  # sums that could be differenced, in `status`
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


@click.group(cls=Group, name="client")
def cli() -> None:
    """Enrol and run an institution's node (hospital, ministry).

    \b
    First time, in one command, or with a look at policy.yaml (what runs may ask of you) before anything starts:
      sovfed client join hospital-1.invitation --task birth.yaml --data /srv/birth.csv
      sovfed client init data=heart data.path=/srv/heart data.site=cleveland
      sovfed client join hospital-1.invitation
    \b
    Day by day:
      sovfed client up --detach       in the background
      sovfed client status            what runs, since when, restarted how often
      sovfed client logs trainer -f   what it did
      sovfed client failures          what kept it from its work; --clear once you have looked
      sovfed client down
      sovfed client install-service   systemd keeps it up
    \b
    Tasks of your own:
      sovfed client task add birth.yaml   look at it, keep it, --allow it
      sovfed client check-data birth.yaml patients.csv   what fits it, what does not, and where
    \b
    Texts for a language model:
      sovfed client data prepare law.yaml archive.jsonl.xz --tokenizer tokenizer.json --out store/
    \b
    Several studies on one node:
      sovfed client study add births --task birth.yaml data=csv data.path=/srv/births.csv
      sovfed client study check       read the records of every study, and say what to mend
    \b
    Orders:
      sovfed client orders list       what runs ask of this institution; show, sign or refuse one
      sovfed client purge p-12        at the end of a permit: erase what its runs left
    \b
    Models:
      sovfed client model list        what the federation made, and evaluate on the own records
      sovfed client statistics        what it counted, with the own figures beside it
    \b
    Personal models:
      sovfed client personal list     what runs with strategy=ditto, fedbn or fedper left here
    \b
    Private runs:
      sovfed client ledger show       what was learnt about the persons in the records
      sovfed client check-private     which tasks' models can be trained privately
    """
    os.umask(0o077)  # databases and logs that libraries make are the owner's too


def log_terms(home: Path) -> Terms:
    """How long the log of `home` is kept."""
    from sovfed.clients.orders.retained import terms

    return terms(home)


cli.add_command(check_data)
cli.add_command(console)
cli.add_command(data)
cli.add_command(enrol)
cli.add_command(evaluations)
cli.add_command(failures)
cli.add_command(join)
cli.add_command(ledger)
cli.add_command(log_commands(HOME, "client", log_terms))
cli.add_command(model)
cli.add_command(orders)
cli.add_command(personal)
cli.add_command(purge)
cli.add_command(release)
cli.add_command(renew)
cli.add_command(statistics)
cli.add_command(table)
cli.add_command(study)
cli.add_command(task)


@cli.command("check-private")
@click.argument("tasks", nargs=-1)
@click.option("--several-records/--one-record", default=True, help="Whether a person may have several records.")
@click.option("--group-norm", is_flag=True, help="As with task.normalisation=group: BatchNorm made GroupNorm.")
@click.pass_context
def check_private(ctx: click.Context, tasks: tuple[str, ...], several_records: bool, group_norm: bool) -> None:
    """Can the models of TASKS (default: all) be trained with differential privacy? Says why not, and the fix.

    Tried on made-up records; the trainer makes the same check before the first private step. Exits with 3 if not.

    \b
    Examples:
      sovfed client check-private
      sovfed client check-private heart --one-record
      sovfed client check-private digits_cnn --group-norm
    """
    from sovfed.clients.dpsgd.examination import examine_task
    from sovfed.federation.tasks.registry import get_task, names

    refused = False
    for name in tasks or [name for name in names() if get_task(name).build is not None]:
        task = get_task(name, normalisation="group" if group_norm else "own")
        findings = examine_task(task, several_records=several_records)
        refused |= any(finding.refused for finding in findings)
        click.echo(f"{name}: " + ("no" if any(finding.refused for finding in findings) else "yes"))
        for finding in findings:
            click.echo(f"  {finding}")
    ctx.exit(3 if refused else 0)


@cli.command()
@click.argument("overrides", nargs=-1)
@policy_options
@HOME
def init(overrides: tuple[str, ...], chosen: Chosen, home: Path) -> None:
    """Make the home folder with client.yaml and policy.yaml, both commented. OVERRIDES set `data…` and `client…`.

    \b
    Examples:
      sovfed client init
      sovfed client init data=heart data.path=/srv/heart data.site=cleveland client.device=cuda
      sovfed client init --task birth.yaml data=own data.path=/srv/birth.csv
      sovfed client init data=heart data.path=/srv/heart --min-cohort 4 --officers
    """
    from sovfed.clients.cli.data import schema_of, tell_beside
    from sovfed.clients.home.begin import begin
    from sovfed.clients.home.overrides import client_config

    tell_beside(overrides)
    for line in begin(home, client_config(overrides, schema=schema_of(chosen.tasks)), chosen):
        click.echo(line, err=True)
    click.echo(f"wrote {home / 'client.yaml'} and {home / 'policy.yaml'}")
    if not chosen.plain_updates:
        click.echo("read policy.yaml: until you set allow_plain_updates, only secure aggregation is answered", err=True)
    if not chosen.without_privacy:
        click.echo("read policy.yaml: while require_privacy is true, only private runs are answered", err=True)
    if not chosen.officers:
        click.echo("orders within policy.yaml are signed by this node itself: `sovfed client orders consent`", err=True)
    _tell_obstacles(home)
    _tell_findings(home)


@cli.command()
@click.option("--detach", is_flag=True, help="Return once everything runs; `sovfed client down` stops it.")
@click.option("--plain", is_flag=True, help="No live table.")
@click.option("--look/--no-look", default=True, help="Read the records of every study first, a minute each at most.")
@HOME
def up(detach: bool, plain: bool, look: bool, home: Path) -> None:
    """Run trainer, supernode and gateway; restart what dies. Ctrl-C stops all.

    Refuses to start when not enrolled, without a policy, with a key that others can read or an expired certificate.
    Says what of the records a run would trip over, and starts all the same.

    \b
    Examples:
      sovfed client up
      sovfed client up --detach --home /srv/sovfed/hospital-1
    """
    from sovfed.clients.node.up import make_supervisor, supervise_detached

    if detach:
        with said_if_slow("starting trainer, supernode and gateway; on a busy machine that takes a minute"):
            complaints = supervise_detached(home)
        for line in complaints:
            click.echo(visible(line), err=True)
        if look:
            _tell_obstacles(home)
            _tell_findings(home)
        click.echo(f"running; `sovfed client status --home {home}`")
        return
    supervisor = make_supervisor(home)
    if look:
        _tell_obstacles(home)
        _tell_findings(home)
    if plain or not sys.stdout.isatty():
        supervisor.run(on_ready=lambda: click.echo(f"ready: {home}"))
        return
    from rich.live import Live

    with Live(_table(supervisor.status(), home), refresh_per_second=2) as live:
        supervisor.run(on_change=lambda status: live.update(_table(status, home)))


@cli.command()
@HOME
def down(home: Path) -> None:
    """Stop the processes that `up` started.

    \b
    Example:
      sovfed client down
    """
    from sovfed.federation.host.service_options import refuse_to_stop_a_service
    from sovfed.federation.host.status import stop_supervisor

    refuse_to_stop_a_service(home)
    click.echo("stopped" if stop_supervisor(home) else "it was not running")


@cli.command("install-service")
@service_options
@HOME
def install_service(user: str, name: str, folder: Path, start: bool, show: bool, home: Path) -> None:
    """Have systemd keep this institution's node up: from the machine's start on, whatever happens to it.

    It runs as the owner of the home, who must be allowed to read the records.

    \b
    Examples:
      sovfed client install-service --home /srv/sovfed --print
      sudo sovfed client install-service --home /srv/sovfed --user sovfed
    """
    from sovfed.federation.host.service_options import carry_out
    from sovfed.federation.host.units import service

    unit = service("client", home.absolute(), "--plain", "--no-look", user=user, name=name)
    carry_out([unit], folder, start=start, show=show)


@cli.command()
@JSON
@HOME
@click.pass_context
def status(ctx: click.Context, as_json: bool, home: Path) -> None:
    """Show the processes: state, since when, restarts. Exits with 4 when they are not running.

    Below them stand the newest sums that could be differenced with an earlier one: what the institutions that are in
    one of the two only contributed can be told from both.

    \b
    Examples:
      sovfed client status
      sovfed client status --json
    """
    from sovfed.clients.cli.failures import describe, told
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.ledger.file import rolled_back
    from sovfed.clients.node.renewal import last_contact
    from sovfed.clients.orders.book import OrderBook
    from sovfed.clients.orders.naming import officer_lines
    from sovfed.clients.orders.purge import unpurged
    from sovfed.clients.trainer.allowance import read_state
    from sovfed.federation.evidence.witness import problems
    from sovfed.federation.host.status import read_status
    from sovfed.federation.secagg.files import near_sums

    current, near, contact, split = read_status(home), near_sums(home), last_contact(home), problems(home)
    policy = load_policy(home) if (home / "policy.yaml").exists() else None
    requests = describe(read_state(home), policy) if policy else None
    permits = [*unpurged(OrderBook(home), policy.permits, time.time())] if policy else []
    officers = officer_lines(OrderBook(home), policy.orders) if policy else []
    ledgers = rolled_back(home)
    if as_json:
        shown = dataclasses.asdict(current) if current else {"processes": []}
        for process in shown["processes"]:
            process["isolation"] = _isolation(home, process["name"], process["pid"])
        agency = dataclasses.asdict(contact) if contact else None
        told_of = {
            "agency": agency,
            "requests": requests,
            "near_sums": near,
            "logs": split,
            "permits": permits,
            "officers": officers,
            "ledgers": ledgers,
        }
        click.echo(json.dumps({**shown, **told_of}, indent=2))
    elif current:
        from rich.console import Console

        Console().print(_table(current, home))
        for line in current.complaints:
            click.echo(line)
        if contact:
            click.echo(f"agency: {visible(contact.problem) or 'reached'} ({time.time() - contact.when:.0f} s ago)")
        if requests:
            click.echo(told(requests))
            _tell_obstacles(home)
    else:
        click.echo(f"not running; `sovfed client up --home {home}` starts it", err=True)
    for line in () if as_json else (*ledgers, *officers, *permits):
        click.echo(visible(line))
    for why in () if as_json else split.values():
        click.echo(visible(f"{why}; `sovfed client log heads` tells more"))
    if near and not as_json:
        click.echo(f"{len(near)} sums could be differenced with an earlier one, the newest:")
        for sentence in near[-NEAR_SHOWN:]:
            click.echo(f"  {sentence}")
    ctx.exit(0 if current else NOT_RUNNING)


@cli.command()
@click.argument("name", type=click.Choice(["trainer", "supernode", "gateway", "supervisor"]))
@click.option("--follow", "-f", is_flag=True, help="Go on printing what is added, until Ctrl-C.")
@click.option("--lines", "-n", default=50, show_default=True, help="How many of the last lines to begin with.")
@HOME
def logs(name: str, follow: bool, lines: int, home: Path) -> None:
    """Print the end of a process's log.

    \b
    Examples:
      sovfed client logs trainer
      sovfed client logs gateway -f
    """
    path = home / "logs" / f"{name}.log"
    if not path.exists():
        raise click.UsageError(f"{path} does not exist yet")
    for line in path.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")[-lines:]:
        click.echo(visible(line))
    if follow:
        for text in _added(path):
            click.echo(visible(text, keep="\t\n"), nl=False)


def _tell_obstacles(home: Path) -> None:
    from sovfed.clients.home.folder import load_config, private_obstacles
    from sovfed.clients.home.policy import load_policy

    for line in private_obstacles(load_config(home), load_policy(home)):
        click.echo(visible(line), err=True)


def _tell_findings(home: Path) -> None:
    from sovfed.clients.home.folder import load_config
    from sovfed.clients.home.looked import data_findings, population_findings
    from sovfed.clients.home.policy import load_policy

    config, policy = load_config(home), load_policy(home)
    for line in (*population_findings(config, policy), *data_findings(config, policy)):
        click.echo(visible(line), err=True)


def _added(path: Path) -> Iterator[str]:
    """What is appended to `path` from now on, across rotations; never ends."""
    offset = path.stat().st_size
    while True:
        size = path.stat().st_size if path.exists() else 0
        offset = offset if size >= offset else 0
        if size > offset:
            with path.open("rb") as file:
                file.seek(offset)
                content = file.read()
            offset += len(content)
            yield content.decode("utf-8", errors="replace")
        time.sleep(0.3)


def _table(status: Status, home: Path) -> Table:

    from rich.table import Table
    from rich.text import Text

    colours = {"ready": "green", "failed": "red", "backing off": "red", "silent": "red"}
    table = Table("process", "state", "since (UTC)", "restarts", "pid", title=str(home), title_justify="left")
    for process in status.processes:
        colour = colours.get(process.state, "yellow")
        since = day(process.since, "%F %T")
        pid = "" if process.pid is None else str(process.pid)
        table.add_row(process.name, f"[{colour}]{process.state}[/]", since, str(process.restarts), pid)
    reach = (f"{process.name} can reach: {_isolation(home, process.name, process.pid)}" for process in status.processes)
    table.caption, table.caption_justify = Text("\n".join(reach)), "left"
    return table


def _isolation(home: Path, name: str, pid: int | None) -> str:
    """What process `pid` can reach, as it has tried when it started; "unknown" if it has not said so."""
    from sovfed.clients.node.sandbox import RUN
    from sovfed.federation.host.sandbox import read_isolation

    isolation = read_isolation(home / RUN / name, pid)
    return isolation.sentence() if isolation else "unknown"
