"""`sovfed client orders`: what runs ask of this institution, and its officers' word on it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.asking import ask_secret, confirmed
from sovfed.federation.help import Group
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sovfed.clients.orders.answering import Shown
    from sovfed.clients.orders.book import OrderBook
    from sovfed.federation.orders.answers import Answer
    from sovfed.federation.orders.order import RunOrder

KEY: Final = click.option(
    "--key", type=click.Path(path_type=Path, dir_okay=False), default=Path.home() / ".sovfed" / "officer.pem",
    show_default="~/.sovfed/officer.pem", envvar="SOVFED_OFFICER_KEY", help="The officer's own key.",
)  # fmt: skip
OFFICER: Final = click.option("--officer", default="", help="Who signs, where the policy names several.")
ORDER: Final = click.argument("order")


@click.group(cls=Group)
def orders() -> None:
    """What runs ask of this institution: read, sign or refuse it. Nothing is answered without that.

    \b
    Examples:
      sovfed client orders officer dr-ito        once: a key of your own, named in policy.yaml
      sovfed client orders list
      sovfed client orders show 3f2a9c
      sovfed client orders sign 3f2a9c
      sovfed client orders refuse 3f2a9c --reason "not for this purpose"
      sovfed client orders withdraw heart-2027   also of a run that is over: its model is made anew without you
      sovfed client orders consent               what is signed without anybody, and within what bounds
    """


@orders.command()
@click.argument("name")
@click.option("--passphrase/--no-passphrase", default=True, help="Seal the key with a passphrase, which is asked for.")
@KEY
@HOME
def officer(name: str, passphrase: bool, key: Path, home: Path) -> None:
    """Make the key of officer NAME and enter its public half in policy.yaml. Keep the key where no server reads it.

    \b
    Example:
      sovfed client orders officer dr-ito --key /media/card/dr-ito.pem
    """
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.orders.naming import allow_officer, check_officer, from_when
    from sovfed.federation.orders.answers import create_officer

    check_officer(home, name)  # before there is a key
    words = ask_secret("passphrase", "--no-passphrase, or a terminal", twice=True) if passphrase else ""
    key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    public = create_officer(key, words.encode())
    before = load_policy(home).orders.keys.get(name)
    allow_officer(home, name, public)
    click.echo(f"{key}: the key of {visible(name)}; policy.yaml now names {visible(name)}={public}")
    if before is not None:
        click.echo(f"in the place of {before}, which policy.yaml names no longer")
    if key.resolve().is_relative_to(home.resolve()):
        click.echo("warning: the key is in the home, where the node's processes can read it: keep it elsewhere")
    click.echo(f"{from_when(home)}; `orders: mode: required` lets no run begin without a person")


@orders.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@HOME
def list_(as_json: bool, home: Path) -> None:
    """List the orders, the newest first, with this institution's word on each.

    \b
    Example:
      sovfed client orders list
    """
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.orders.naming import nobody
    from sovfed.clients.orders.purge import unpurged

    now = time.time()
    told = ((proposal.order, answer) for proposal, answer in _book(home).words())
    rows = [_row(order, answer, ended=now >= order.expires) for order, answer in told]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("No run has shown an order here yet.")
    for row in rows:
        click.echo(visible(f"{row['order'][:12]}  {row['run']}  {row['task']}  {row['purpose']}"))
        click.echo(visible(f"{' ' * 14}{row['text']}"))
    if (not rows or any(row["word"] == "waiting" for row in rows)) and (line := nobody(home, load_policy(home).orders)):
        click.echo(visible(line))
    _tell(unpurged(_book(home), load_policy(home).permits, time.time()))


@orders.command()
@ORDER
@click.option("--json", "as_json", is_flag=True, help="Print the order itself.")
@HOME
def show(order: str, as_json: bool, home: Path) -> None:
    """Show ORDER, a run's name or the first digits of an order: what would leave, at what cost, and what did.

    \b
    Example:
      sovfed client orders show 3f2a9c
    """
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.orders.answering import explained

    book = _book(home)
    shown = _shown(book, order)
    if as_json:
        click.echo(shown.order.text.decode())
        return
    _tell(explained(book, shown, load_policy(home)))


@orders.command()
@ORDER
@click.option("--yes", is_flag=True, help="Do not ask: it has been read.")
@OFFICER
@KEY
@HOME
def sign(order: str, yes: bool, officer: str, key: Path, home: Path) -> None:
    """Show ORDER and sign it: its run is answered from then on, as far as the order says and the policy allows.

    \b
    Example:
      sovfed client orders sign 3f2a9c
    """
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.orders.answering import explained
    from sovfed.clients.orders.naming import nobody
    from sovfed.federation.errors import PolicyError
    from sovfed.federation.orders.answers import SIGNED

    book, policy = _book(home), load_policy(home)
    shown = _shown(book, order)
    _tell(explained(book, shown, policy))
    if not policy.orders.officers:
        raise PolicyError(f"nobody can sign here: {nobody(home, policy.orders) or 'policy.yaml names no officer'}")
    if not yes and not confirmed("Have you read it, and does this institution take part?"):
        raise PolicyError("not signed")
    _answer(book, shown, SIGNED, officer, key, "")


@orders.command()
@ORDER
@click.option("--reason", default="", help="Kept here, and told to the agency with the answer.")
@OFFICER
@KEY
@HOME
def refuse(order: str, reason: str, officer: str, key: Path, home: Path) -> None:
    """Refuse ORDER, also one that was signed before: its run gets no further answer.

    \b
    Example:
      sovfed client orders refuse 3f2a9c --reason "not for this purpose"
    """
    from sovfed.federation.orders.answers import REFUSED

    book = _book(home)
    _answer(book, _shown(book, order), REFUSED, officer, key, reason)


@orders.command()
@ORDER
@click.option("--reason", default="", help="Kept here, and told to the agency with the statement.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The new file, else RUN.withdrawal.")
@OFFICER
@KEY
@HOME
def withdraw(order: str, reason: str, out: Path | None, officer: str, key: Path, home: Path) -> None:
    """Withdraw from ORDER, also after its run has ended: nothing more of it is answered, nor consented to in advance.

    Writes the signed statement by which the agency records it and makes the model anew: send it there. Where the
    policy names no officer, this node signs it.

    \b
    Example:
      sovfed client orders withdraw heart-2027 --out hospital-4.withdrawal
    """
    from sovfed.clients.orders.leaving import withdraw as leave
    from sovfed.federation.files import check_new, write_private

    book = _book(home)
    proposal = book.named(order)
    path = out or Path(f"{proposal.order.run}.withdrawal")
    check_new(path)
    answer = leave(book, proposal.order, _opening(key), officer, reason, int(time.time()))
    write_private(path, answer.to_bytes())
    click.echo(f"withdrawn from run {visible(proposal.order.run)}: nothing more of it is answered here")
    click.echo(f"{path} is the signed statement; anybody: `sovfed verify {path} --root root.pem`")
    click.echo(f"send {path} to the agency, which records it: `sovfed run withdraw {visible(proposal.order.run)} …`")


@orders.command()
@HOME
def consent(home: Path) -> None:
    """Show what this institution signs without anybody: the standing consent of policy.yaml.

    \b
    Example:
      sovfed client orders consent
    """
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.orders.naming import consented

    _tell(consented(load_policy(home), _book(home).withdrawn_tasks()))


@click.command()
@click.argument("permit")
@click.option("--yes", is_flag=True, help="Do not ask.")
@HOME
def purge(permit: str, yes: bool, home: Path) -> None:
    """Erase what the runs under PERMIT left here: keys of secure aggregation, personal models. For good.

    Writes a signed receipt of what was erased and what remains, and no run under PERMIT is answered again. The node
    must be down, since its memory holds keys.

    \b
    Example:
      sovfed client purge p-12
    """
    from sovfed.clients.orders.purge import purge as erase
    from sovfed.clients.training.personal import FOLDER, PersonalStates
    from sovfed.federation.errors import PolicyError
    from sovfed.federation.secagg.files import load_identity

    if not yes and not confirmed(f"Erase what runs under permit {visible(permit)} left here?"):
        raise PolicyError("nothing was erased")
    remove = PersonalStates(home / FOLDER).remove
    receipt = erase(home, _book(home), permit, load_identity(home / "identity"), remove, time.time())
    _tell(f"erased: {name}" for name in receipt.erased or ("nothing was left",))
    _tell(f"remains: {name}" for name in receipt.remains)
    path = home / "orders" / "receipts" / f"{permit}.json"
    click.echo(f"receipt: {path}; `sovfed verify {path} --root root.pem` checks it")


def _row(order: RunOrder, answer: Answer | None, *, ended: bool) -> dict[str, Any]:
    from sovfed.federation.orders.shown import word

    unanswered = "ended" if ended else "waiting"
    return {
        "order": order.digest, "run": order.run, "task": order.task, "purpose": order.purpose, "epsilon": order.epsilon,
        "expires": order.expires, "word": unanswered if answer is None else answer.decision,
        "text": word(answer, ended=ended),
    }  # fmt: skip


def _answer(book: OrderBook, shown: Shown, decision: str, officer: str, key: Path, reason: str) -> None:
    """Sign `decision` with the officer's key and put it where the trainer looks."""
    from sovfed.clients.orders.answering import answer_order

    answer = answer_order(book, shown, decision, _opening(key), officer=officer, reason=reason, now=time.time())
    order = shown.order
    click.echo(f"order {order.digest[:12]} of run {visible(order.run)}: {decision} by {visible(answer.officer)}")


def _opening(key: Path) -> Callable[[], tuple[str, Callable[[bytes], bytes]]]:
    """What opens the officer's key, and asks for its passphrase."""
    from sovfed.federation.errors import IdentityError
    from sovfed.federation.orders.answers import load_officer

    def opened() -> tuple[str, Callable[[bytes], bytes]]:
        if not key.exists():
            raise IdentityError(f"{key}: no officer's key is there; --key FILE names the one of `orders officer`")
        return load_officer(key, lambda: ask_secret("passphrase", "the key is sealed; use a terminal").encode())

    return opened


def _shown(book: OrderBook, name: str) -> Shown:
    from sovfed.clients.orders.answering import Shown

    proposal = book.named(name)
    return Shown(proposal, book.word(proposal.order.digest))


def _book(home: Path) -> OrderBook:
    from sovfed.clients.orders.book import OrderBook

    return OrderBook(home).make()


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(visible(line))
