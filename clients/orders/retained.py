"""Which entries of an institution's log are still needed, however old: those of orders and permits that go on."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.home.policy import load_policy
from sovfed.clients.orders.book import OrderBook
from sovfed.federation.evidence.retention import Rule, Terms
from sovfed.federation.secagg.request import whole_run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

HOLDS: Final = "their order still holds"


def terms(home: Path) -> Terms:
    """How long the log of `home` is kept by its policy, and what is needed longer."""
    return terms_of(home, load_policy(home).log_retention_days)


def terms_of(home: Path, days: int) -> Terms:
    """The same, by a policy that was read already."""
    return Terms(Rule(days, "log_retention_days of policy.yaml"), partial(needed, home))


def needed(home: Path) -> Callable[[Mapping[str, Any]], str]:
    """Why an entry must stay, "" if it need not. Raises OrderError where the book of orders cannot be read."""
    book, now = OrderBook(home), time.time()
    reasons = dict[str, str]()  # by an order's digest, a run's name, or Flower's run
    for proposal in book.proposals():
        if proposal.order.expires > now:
            reasons |= dict.fromkeys((proposal.order.digest, proposal.order.run), HOLDS)
    for run, bound in book.runs().items():
        unpurged = bound.permit and not book.is_purged(bound.permit)
        why = f"permit {bound.permit} is not purged" if unpurged else reasons.get(bound.order)
        if why:
            reasons |= dict.fromkeys((bound.order, bound.name, run, *bound.earlier), why)

    def judge(values: Mapping[str, Any]) -> str:
        ids = (values.get("order"), values.get("name"), whole_run(str(values.get("run", ""))))
        return next((reasons[known] for known in ids if isinstance(known, str) and known in reasons), "")

    return judge
