"""`sovfed run propose|approve|explain|withdraw|unlearn|purge`: a run's order, before it starts and after it ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sovfed.federation.asking import confirmed
from sovfed.federation.text import visible
from sovfed.server.cli.home import HOME, JSON, option

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sovfed.federation.orders.order import Proposal


@click.command()
@click.argument("overrides", nargs=-1)
@HOME
def propose(overrides: tuple[str, ...], home: Path) -> None:
    """Make a run's order without starting it, for people of the agency to approve. OVERRIDES as with `run start`.

    \b
    Examples:
      sovfed run propose task=heart run_name=heart-2027 order.purpose="risk of infarction, study 12"
      sovfed run propose task=heart privacy=distributed order.permit=p-12 order.valid_days=90
    """
    from sovfed.server.orders.proposing import configured, require_task
    from sovfed.server.orders.proposing import propose as propose_run
    from sovfed.server.orders.told import order_lines
    from sovfed.server.runs.folders import new_run_name

    require_task(overrides)
    config = configured(home, overrides)
    name = new_run_name(config)
    proposal = propose_run(home, name, config, overrides)
    _tell(order_lines(proposal))
    _warn(home, proposal)
    _next(home, name)


@click.command()
@click.argument("order", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--signer", type=click.Path(path_type=Path, file_okay=False), default=Path.home() / ".sovfed" / "signer",
    show_default="~/.sovfed/signer", envvar="SOVFED_SIGNER_HOME", help="Where your signing key is.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask: it has been read.")
def approve(order: Path, signer: Path, yes: bool) -> None:
    """Read the file ORDER of a proposed run and sign it as one of the agency's people.

    The key is that of `sovfed task signer`. The file may be carried to your own machine and back.

    \b
    Example:
      sovfed run approve runs/heart-2027/order.json
    """
    from sovfed.federation.archive.signer import load_signer
    from sovfed.federation.errors import PolicyError
    from sovfed.federation.orders.order import read_proposal
    from sovfed.server.orders.approved import approved
    from sovfed.server.orders.proposing import approve as approve_order
    from sovfed.server.orders.proposing import home_of
    from sovfed.server.orders.told import order_lines

    person = load_signer(signer)
    proposal = read_proposal(order.read_bytes(), str(order))
    _tell(order_lines(proposal))
    if (home := home_of(order)) is not None:
        _warn(home, proposal)
    if not yes and not confirmed(f"Have you read it, and do you sign it as {person.identity}?"):
        raise PolicyError(f"{order}: not signed")
    proposal = approve_order(order, proposal.order, person)
    click.echo(f"{order}: approved by {person.identity}")
    if home is None:
        return
    count = approved(home, proposal)
    if count.lacking:
        click.echo(visible(f"still: {count.lacking}"))
    elif count.least:
        click.echo(visible(f"next: `sovfed run start --proposed {proposal.order.run}{option(home)}`"))


@click.command()
@click.argument("name")
@HOME
@JSON
def explain(name: str, home: Path, as_json: bool) -> None:
    """Say what run NAME would take from each institution and cost there, who agreed, and, afterwards, what it took.

    \b
    Example:
      sovfed run explain heart-2027
    """
    from sovfed.federation.orders.order import read_proposal
    from sovfed.server.orders.approved import approved
    from sovfed.server.orders.making import read_answers
    from sovfed.server.orders.proposing import order_file
    from sovfed.server.orders.taken import taken
    from sovfed.server.orders.told import order_lines, said_lines
    from sovfed.server.orders.withdrawn import read_withdrawn

    path = order_file(home, name)
    proposal, answers = read_proposal(path.read_bytes(), str(path)), read_answers(path.parent)
    if as_json:
        order: dict[str, Any] = json.loads(proposal.order.text)
        values = {"digest": proposal.order.digest, "order": order, "answers": answers}
        click.echo(json.dumps(values | {"taken": taken(path.parent)}, indent=2))
        return
    _tell(order_lines(proposal))
    _tell(filter(None, (approved(home, proposal).lacking,)))
    _warn(home, proposal)
    _tell(said_lines(proposal, answers))
    _tell(line for withdrawal in read_withdrawn(path.parent) for line in withdrawal.told())
    _tell(f"has left: {line}" for line in taken(path.parent))


@click.command()
@click.argument("name")
@click.argument("institution")
@click.option(
    "--statement", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The file that `client orders withdraw` wrote, unless the institution has answered the run so.",
)  # fmt: skip
@HOME
def withdraw(name: str, institution: str, statement: Path | None, home: Path) -> None:
    """Record that INSTITUTION withdraws from run NAME: it is asked for nothing more, and what was made with it is told.

    \b
    Examples:
      sovfed run withdraw heart-2027 hospital-4 --statement hospital-4.withdrawal
      sovfed run unlearn heart-2027            then: the model made anew without it
    """
    from sovfed.server.orders.further import after_lines
    from sovfed.server.orders.withdrawing import withdraw as record_withdrawal

    said = None if statement is None else statement.read_bytes()
    _tell(record_withdrawal(home, name, institution, said).told())
    _tell(after_lines(home, name))


@click.command()
@click.argument("permit")
@click.option("--yes", is_flag=True, help="Do not ask.")
@HOME
def purge(permit: str, yes: bool, home: Path) -> None:
    """Erase the checkpoints of all runs under PERMIT, which has ended. For good; each institution purges its own home.

    Writes a signed receipt of what was erased and what remains.

    \b
    Example:
      sovfed run purge p-12
    """
    from sovfed.federation.errors import PolicyError
    from sovfed.server.orders.purging import FOLDER
    from sovfed.server.orders.purging import purge as erase

    if not yes and not confirmed(f"Erase the checkpoints of all runs under permit {visible(permit)}?"):
        raise PolicyError("nothing was erased")
    _tell(erase(home, permit, time.time()).lines())
    path = home / FOLDER / f"{permit}.json"
    click.echo(f"receipt: {path}; `sovfed verify {path} --root root.pem` checks it")


@click.command()
@click.argument("name")
@click.option("--name", "new", default="", help="The new run's name, else NAME-without-N.")
@click.option("--purpose", default="", help="The new order's purpose, else that of run NAME, which is told.")
@HOME
def unlearn(name: str, new: str, purpose: str, home: Path) -> None:
    """Propose run NAME anew without those who have withdrawn from it: from the last model before their first round.

    Approve and start it like any proposed run; its release names what it replaces.

    \b
    Example:
      sovfed run unlearn heart-2027
      sovfed run unlearn heart-2027 --purpose "study 12, without one hospital"
      sovfed run start --proposed heart-2027-without-1
    """
    from sovfed.server.orders.told import order_lines
    from sovfed.server.orders.unlearning import unlearn as propose_anew

    made, proposal = propose_anew(home, name, new or _unused(home, name), purpose)
    _tell(order_lines(proposal))
    _warn(home, proposal)
    if not purpose:
        click.echo(visible(f"for the purpose that run {name} had: {proposal.order.purpose}; --purpose says another"))
    begins = f"from after round {made.from_round}" if made.from_round else "from the beginning"
    click.echo(visible(f"made anew {begins}, without {', '.join(made.withdrawn)}"))
    click.echo("not undone: models already given away, sums already opened, ε already charged to ledgers")
    _next(home, proposal.order.run)


def _next(home: Path, name: str) -> None:
    """How a run that is proposed begins."""
    from sovfed.server.orders.approved import approved
    from sovfed.server.orders.making import read_order
    from sovfed.server.orders.proposing import order_file
    from sovfed.server.orders.told import officer_commands
    from sovfed.server.runs.folders import run_folder

    approve = f"`sovfed run approve {order_file(home, name)}`"
    if lacking := approved(home, read_order(run_folder(home, name))).lacking:
        click.echo(visible(f"{lacking}: no run begins before that; next, each of them: {approve}"))
        click.echo(f"then: `sovfed run start --proposed {name}{option(home)}`")
    else:
        click.echo(f"next: `sovfed run start --proposed {name}{option(home)}`")
        click.echo("where institutions ask for approvals (orders.min_approvers; `--officers` writes 2), each first:")
        click.echo(approve)
    _, sign, _ = officer_commands(name)
    click.echo(f"once it is started, the data officer of each institution whose policy asks for one: `{sign}`")


def _warn(home: Path, proposal: Proposal) -> None:
    """Say on standard error why institutions will refuse, by the agency's own records and the defaults of policies."""
    from sovfed.server.orders.foreseen import foreseen

    for line in foreseen(home, proposal.order):
        click.echo(visible(f"warning: {line}"), err=True)


def _unused(home: Path, name: str) -> str:
    """A name for the run that makes `name` anew."""
    from itertools import count

    from sovfed.server.runs.folders import run_folder

    names = (f"{name}-without-{number}" for number in count(1))
    return next(made for made in names if not run_folder(home, made).exists())


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(visible(line))
