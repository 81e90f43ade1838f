"""Clocks of two machines that differ: said in words at both, since Flower only answers "unauthorized".

Each fleet call is signed with the institution's time, each answer bears the agency's. Nothing is corrected: that the
clock is right again is enough.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import httpx

TIMESTAMP_HEADER: Final = b"flwr-timestamp"  # as the two below Flower's own, held by a contract test
AHEAD_S: Final = 5.0  # how far an institution's clock may be before the agency's
BEHIND_S: Final = 305.0  # and behind it, on its way included
SET: Final = "timedatectl set-ntp true"
AGAIN_S: Final = 300.0  # between two warnings
log = logging.getLogger("sovfed.clock")
_ASKED: Final = "sovfed.asked_s"
_warned: list[float] = []


def signed_too_far(stamp: bytes | None, now: datetime) -> str:
    """Why a request signed at `stamp` (ISO 8601, UTC) will be refused at `now`; "" if it is not for its time."""
    try:
        signed = datetime.fromisoformat((stamp or b"").decode("ascii"))
        behind_s = (now - signed).total_seconds()
    except (ValueError, TypeError):  # Flower says what it thinks of that
        return ""
    if -AHEAD_S < behind_s < BEHIND_S:
        return ""
    return f"its clock says {signed:%F %T} UTC and this one {now:%F %T} UTC, {_words(-behind_s)}: one of them is wrong"


def difference(date: str, asked_s: float) -> str:
    """How this clock differs from the agency's, whose answer bears `date`, if it refuses us for that; "" if not.

    It was asked at `asked_s` (`time.monotonic`) and wrote `date` at some time since: how long the answer took tells
    nothing of its clock. `date` has whole seconds (RFC 9110, section 5.6.7). Raises ValueError if it is none.
    """
    now = datetime.now(UTC)
    waited_s = time.monotonic() - asked_s  # read last: a pause between the two is part of the wait
    try:
        theirs = parsedate_to_datetime(date)
        ahead_s = (now - (theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC))).total_seconds()
    except (TypeError, IndexError, OverflowError) as error:
        raise ValueError("no HTTP date") from error
    if -BEHIND_S < ahead_s < AHEAD_S + waited_s + 1:
        return ""
    return f"this machine's clock says {now:%F %T} UTC and the agency's {theirs:%F %T} UTC, {_words(ahead_s)}"


def note_time(request: httpx.Request) -> None:
    """Keep when `request` leaves, for `tell_difference`."""
    request.extensions[_ASKED] = time.monotonic()


def tell_difference(response: httpx.Response) -> None:
    """Warn, now and then, if the agency's clock, as its answer has it, is another than this machine's.

    Nothing is said of an answer to a request that `note_time` has not seen.
    """
    try:
        said = difference(response.headers["date"], response.request.extensions[_ASKED])
    except (KeyError, ValueError):
        return
    if not said or (_warned and time.monotonic() - _warned[0] < AGAIN_S):
        return
    _warned[:] = [time.monotonic()]
    log.warning("%s: one of them is wrong, and until it is set (%s) the agency refuses this institution", said, SET)


def _words(ahead_s: float) -> str:
    return f"{timedelta(seconds=round(abs(ahead_s)))} {'ahead' if ahead_s > 0 else 'behind'}"
