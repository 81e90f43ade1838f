"""An institution's withdrawal from a run, signed by its officer, or by its node where it has none."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sovfed.clients.home.policy import load_policy
from sovfed.clients.orders.answering import stands
from sovfed.clients.orders.naming import officer_of
from sovfed.federation.errors import SovfedError
from sovfed.federation.identity import load_roots
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

    Said once more, it is the statement that was made first, and nothing is written, unless it is one by nobody who may
    say it.

    `open_key` gives the officer's public key and signer, and is not asked where policy and caller name no `officer`.
    Raises IdentityError if the key is no officer's.
    """
    identity = load_identity(book.home / "identity")
    institution = identity.verify(identity.certificate).institution
    named = load_policy(book.home).orders.keys
    name, public, sign = "", "", identity.sign
    by_officer = bool(named or officer)  # who names one is not signed for by the node, whatever the policy says by now
    if by_officer:
        public, sign = open_key()
        name = officer_of(book.home, public, officer)
    answer = make_answer(
        order=order.digest, institution=institution, decision=WITHDRAWN, officer=name, reason=reason, at=now, key=public
    )
    answer = answer.signed(sign).vouched_by(identity) if by_officer else answer.by_node(identity)
    with book.answering():
        said = statement_of(book, order.digest)
        if said is not None and stands(said, named):
            if order.task_digest in book.withdrawn_tasks():
                return said
            answer = said  # what was begun, and not written down whole
        book.withdraw(answer, order.task_digest)
    tell(book.home, OrderEvent(WITHDRAWN, order.digest, order.run, answer.officer, answer.key))
    return answer


def statement_of(book: OrderBook, digest: str) -> Answer | None:
    """The institution's withdrawal from the order of `digest`, by which the agency records it; None if there is none.

    Only what lies where no process of the node may write, and holds for everybody who has our root.
    """
    with contextlib.suppress(SovfedError, OSError):
        said = book.answer(digest)
        if said is not None and (said.order, said.decision) == (digest, WITHDRAWN):
            said.check_origin(load_roots(book.home / "identity" / "root.pem"))
            return said
    return None
