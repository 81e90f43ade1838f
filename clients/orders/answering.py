"""An officer's word on an order, by the command or on the institution's page: read, checked, signed, entered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.clients.home.policy import load_policy
from sovfed.clients.node.enrol import load_institution
from sovfed.clients.orders.differing import differing
from sovfed.clients.orders.naming import check_in_force, nobody, officer_of
from sovfed.federation.errors import OrderError, SovfedError
from sovfed.federation.orders.answers import CONSENTED, SIGNED, UNREADABLE, WITHDRAWN, make_answer
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.orders.shown import approvals, asked, leaves, left, word
from sovfed.federation.text import day

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sovfed.clients.home.policy import Policy
    from sovfed.clients.orders.book import OrderBook
    from sovfed.federation.orders.answers import Answer
    from sovfed.federation.orders.order import Proposal, RunOrder


@dataclass(frozen=True)
class Shown:
    """An order, and the institution's word on it by then, as a person was shown them."""

    proposal: Proposal
    word: Answer | None

    @property
    def order(self) -> RunOrder:
        return self.proposal.order


def explained(book: OrderBook, shown: Shown, policy: Policy) -> Iterator[str]:
    """All that an officer reads first: what would leave, at what cost, what did, what was said, a line each.

    Also what the institution's own `policy` will refuse of it once it is signed.
    """
    order, rules = shown.order, policy.orders
    yield from asked(order)
    yield from leaves(order)
    yield from approvals(shown.proposal)
    yield from differing(book.home, order, policy.secure_aggregation)
    for run, bound in book.runs().items():
        if bound.order == order.digest:
            yield f"Flower's run {run}: {next(left(bound.answered, order))}"
    yield word(shown.word)
    if shown.word is None:
        yield from filter(None, [nobody(book.home, rules)])
    elif shown.word.decision != UNREADABLE and not stands(shown.word, rules.keys):
        yield "that word is by no officer whom policy.yaml names with this key: it holds as none, and one is awaited"


def stands(said: Answer | None, officers: Mapping[str, str]) -> bool:
    """Whether `said` is a word of the node, or of one of `officers` with the key (base64) that each has by now."""
    if said is None or said.decision == UNREADABLE:
        return False
    if said.is_of_node:
        return said.decision in (CONSENTED, WITHDRAWN)
    try:
        said.check_officer(officers.get(said.officer, ""))
    except SovfedError:
        return False
    return True


def answer_order(
    book: OrderBook,
    shown: Shown,
    decision: str,
    open_key: Callable[[], tuple[str, Callable[[bytes], bytes]]],
    *,
    officer: str,
    reason: str,
    now: float,
) -> Answer:
    """The `decision` on the order that was `shown`, signed, entered in the log, and put where the trainer looks.

    `open_key` gives the officer's public key and signer. Raises SovfedError, and nothing is written: OrderError where
    the order has ended, is not as it was shown, or was answered since; IdentityError if the key is no officer's, or not
    that of `officer`; PolicyError where the trainer that runs would not take the word.
    """
    order = shown.order
    _check(book, shown, decision, now)
    public, sign = open_key()
    name = officer_of(book.home, public, officer)
    check_in_force(book, name, public)
    answer = make_answer(
        order=order.digest, institution=load_institution(book.home).name, decision=decision, officer=name,
        reason=reason, at=int(now), key=public,
    ).signed(sign)  # fmt: skip
    event = OrderEvent(decision, order.digest, order.run, name, public)
    with book.answering():
        _check(book, shown, decision, now)
        if decision == SIGNED:  # nothing is agreed to that is not in the log
            tell(book.home, event)
        book.write_answer(answer)
        if decision != SIGNED:
            tell(book.home, event)
    return answer


def _check(book: OrderBook, shown: Shown, decision: str, now: float) -> None:
    """Raise OrderError unless `decision` can be said now to what was `shown`."""
    order = shown.order
    which = f"order {order.digest[:12]} of run {order.run}"
    if book.proposal(order.digest) is None:
        raise OrderError(f"{which} is not here any more as it was shown: nothing was written")
    said = book.word(order.digest)
    if said != shown.word:
        raise OrderError(f"{which} was answered since it was shown ({word(said)}): nothing was written")
    if said is not None and said.decision == WITHDRAWN:
        raise OrderError(f"{which}: this institution has {word(said)}, and nothing more is said to it")
    if said is not None and said.decision == decision and stands(said, load_policy(book.home).orders.keys):
        raise OrderError(f"{which} is answered already ({word(said)}): nothing was written")
    if decision == SIGNED and now >= order.expires:
        raise OrderError(f"{which} ended on {day(order.expires)}: nothing was written")
