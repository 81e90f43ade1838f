"""An order as the agency's people are told of it: what it asks, who approved it, who said what, what comes next."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sovfed.federation.errors import SovfedError
from sovfed.federation.orders.answers import read_answer
from sovfed.federation.orders.shown import approvals, asked, leaves, word

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sovfed.federation.orders.order import Proposal


def order_lines(proposal: Proposal) -> Iterator[str]:
    """The order, what it takes, and who of the agency has approved it."""
    yield from asked(proposal.order)
    yield from leaves(proposal.order)
    yield from approvals(proposal)


def said_lines(proposal: Proposal, answers: Mapping[str, Any]) -> Iterator[str]:
    """What each institution answered, as it said itself."""
    for name, value in sorted(answers.items()):
        try:
            answer = read_answer(json.dumps(value).encode(), name)
        except SovfedError as error:
            yield f"{name}: its answer cannot be read: {error}"
            continue
        old = "" if answer.order == proposal.order.digest else " (to an earlier order)"
        yield f"{name}: {word(answer)}{old}"


def officer_commands(run: str) -> tuple[str, ...]:
    """What the data officer of an institution types about the order of `run`, which arrives when the run is started."""
    return (
        f"sovfed client orders show {run}",
        f"sovfed client orders sign {run}",
        f"sovfed client orders refuse {run} --reason WHY",
    )
