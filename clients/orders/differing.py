"""Whether this institution's own policy would refuse a signed order's sums, for what they tell beside earlier ones.

The rules are those that the trainer asks when a sum begins (`federation/secagg/opened.py`), by the same journal: here
an officer is told before signing.
"""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ServiceError, SovfedError
from sovfed.federation.files import stamp
from sovfed.federation.secagg.files import FOLDER, JOURNAL
from sovfed.federation.secagg.history import name_tag
from sovfed.federation.secagg.journal import read_history
from sovfed.federation.secagg.opened import (
    check_apart,
    check_bounds,
    check_differencing,
    day_of,
    earlier_sums,
    is_judged,
)
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.secagg.terms import REFUSE, Terms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.federation.orders.order import RunOrder
    from sovfed.federation.secagg.history import History

SUM: Final = "a sum over its cohort"


def differing(home: Path, order: RunOrder, terms: Terms, now: float | None = None) -> Iterator[str]:
    """What the institution in `home`, under these `terms`, will refuse of `order` though it is signed, a line each.

    Of a run that names no cohort, which institutions it has to be over. Nothing before there was a sum.
    """
    kind, path = _judged(order, terms), home / FOLDER / JOURNAL
    if kind is None or not path.exists():
        return
    try:
        history = _history(path, stamp(path))
    except ServiceError as error:
        yield f"whether our policy refuses its sums beside earlier ones cannot be told: {error}"
        return
    today = day_of(time.time() if now is None else now)
    if not order.cohort:
        yield from _over_whom(history, order, terms, today)
    elif reason := _why_not(history, order, terms, kind, today):
        yield f"signed or not, this institution's own policy will refuse it: {reason}"


@lru_cache(maxsize=1)
def _history(path: Path, stamped: object) -> History:
    """What the journal at `path` says, read once for many orders as long as it is as it was `stamped`."""
    return read_history(path)


def _judged(order: RunOrder, terms: Terms) -> Purpose | None:
    """What the order's sums are for, if they are held against earlier ones; else None."""
    kinds = {"train": Purpose.TRAIN, "evaluate": Purpose.EVALUATE, "private": Purpose.STEP}
    kind = Purpose.COUNT if order.kind == "private" and (order.statistics or order.candidates) else kinds[order.kind]
    return kind if order.masked and is_judged(kind, terms) else None


def _why_not(history: History, order: RunOrder, terms: Terms, kind: Purpose, today: int) -> str:
    """Why a sum over the order's whole cohort will not be answered; "" if nothing speaks against it."""
    names = frozenset(map(name_tag, order.cohort))
    try:
        terms = order.narrowed(terms)
        check_differencing(history, terms, names, terms.min_cohort, SUM, today)
        check_apart(history, terms, names, SUM, today)
        if kind == Purpose.TRAIN:
            check_bounds(history, terms, Ring(order.bits, order.clip, order.max_weight, len(names)), SUM)
    except SovfedError as error:
        return str(error)
    return ""


def _over_whom(history: History, order: RunOrder, terms: Terms, today: int) -> Iterator[str]:
    """Over which institutions a run that names none will be answered."""
    earlier = earlier_sums(history, terms, today)
    if terms.differencing == REFUSE and earlier:
        least, (names, newest) = max(terms.min_cohort, order.min_cohort), [*earlier.items()][-1]
        yield (
            f"it names no cohort: this institution's own policy answers it only over the very institutions of "
            f"{history.describe(newest)}, {history.list_names(names)}, or over ones that differ by {least} or more"
        )
