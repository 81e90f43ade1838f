"""An institution's withdrawal from a run, signed by its officer, or by its node where it has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.clients.home.policy import load_policy
from sovfed.clients.orders.naming import officer_of
from sovfed.federation.orders.answers import WITHDRAWN, make_answer
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.secagg.files import load_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.orders.book import OrderBook
    from sovfed.federation.orders.answers import Answer
    from sovfed.federation.orders.order import RunOrder


def withdraw(
    book: OrderBook,
    order: RunOrder,
    open_key: Callable[[], tuple[str, Callable[[bytes], bytes]]],
    officer: str,
    reason: str,
    now: int,
) -> Answer:
    """Refuse all of `order` from now on; the statement for the agency, which the node vouches for.

    `open_key` gives the officer's public key and signer, and is not asked where the policy names no officer. Raises
    IdentityError if the key is no officer's.
    """
    identity = load_identity(book.home / "identity")
    institution = identity.verify(identity.certificate).institution
    named = load_policy(book.home).orders.keys
    name, public, sign = "", "", identity.sign
    if named:
        public, sign = open_key()
        name = officer_of(book.home, public, officer)
    answer = make_answer(
        order=order.digest, institution=institution, decision=WITHDRAWN, officer=name, reason=reason, at=now, key=public
    )
    answer = answer.signed(sign).vouched_by(identity) if named else answer.by_node(identity)
    with book.answering():
        book.withdraw(answer, order.task_digest)
    tell(book.home, OrderEvent(WITHDRAWN, order.digest, order.run, name, answer.key))
    return answer
