"""`sovfed run propose|approve|explain`: a run's order, before it starts and after it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sovfed.federation.text import visible
from sovfed.server.cli.home import HOME, JSON

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    from sovfed.server.orders.proposing import configured, order_file
    from sovfed.server.orders.proposing import propose as propose_run
    from sovfed.server.runs.folders import new_run_name

    config = configured(home, overrides)
    name = new_run_name(config)
    proposal = propose_run(home, name, config, overrides)
    _tell(_order(proposal))
    click.echo(f"next: two people sign it, `sovfed run approve {order_file(home, name)}`")
    click.echo(f"then `sovfed run start --proposed {name}`")


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
    from sovfed.server.orders.proposing import approve as approve_order

    person = load_signer(signer)
    proposal = read_proposal(order.read_bytes(), str(order))
    _tell(_order(proposal))
    if not yes and not click.confirm(f"Have you read it, and do you sign it as {person.identity}?"):
        raise PolicyError(f"{order}: not signed")
    approve_order(order, proposal.order, person)
    click.echo(f"{order}: approved by {person.identity}")


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
    from sovfed.server.orders.making import read_answers
    from sovfed.server.orders.proposing import order_file
    from sovfed.server.orders.taken import taken

    path = order_file(home, name)
    proposal, answers = read_proposal(path.read_bytes(), str(path)), read_answers(path.parent)
    if as_json:
        order: dict[str, Any] = json.loads(proposal.order.text)
        values = {"digest": proposal.order.digest, "order": order, "answers": answers}
        click.echo(json.dumps(values | {"taken": taken(path.parent)}, indent=2))
        return
    _tell(_order(proposal))
    _tell(_said(proposal, answers))
    _tell(f"has left: {line}" for line in taken(path.parent))


def _order(proposal: Proposal) -> Iterator[str]:
    """The order, what it takes, and who of the agency has approved it."""
    from sovfed.federation.archive.signing import certified
    from sovfed.federation.orders.shown import asked, leaves

    yield from asked(proposal.order)
    yield from leaves(proposal.order)
    for approval in proposal.approvals:
        yield "approved by {} of {}".format(*certified(approval, "approval"))


def _said(proposal: Proposal, answers: dict[str, Any]) -> Iterator[str]:
    """What each institution answered, as it said itself."""
    from sovfed.federation.errors import SovfedError
    from sovfed.federation.orders.answers import read_answer
    from sovfed.federation.orders.shown import word

    for name, value in sorted(answers.items()):
        try:
            answer = read_answer(json.dumps(value).encode(), name)
        except SovfedError as error:
            yield f"{name}: its answer cannot be read: {error}"
            continue
        old = "" if answer.order == proposal.order.digest else " (to an earlier order)"
        yield f"{name}: {word(answer)}{old}"


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(visible(line))
