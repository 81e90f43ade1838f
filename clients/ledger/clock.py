"""The time that a ledger goes by: it never runs backwards, and a clock that jumps ahead frees no budget.

What the wall clock says is believed as far as it can be: up to 32 days more than was seen to pass since the last entry
of the ledger, by a clock that nobody can set, and up to 92 days of such gaps within a year. A trainer that runs writes
an entry every day, so only one that stood still, or a clock that was set, comes to that; then the ledger grants and
pays nothing until the operator has confirmed the date. A clock set back stops nothing: time goes on as it is seen to.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sovfed.clients.ledger.entries import DAY_S, UNSEEN_S, YEAR_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.ledger.entries import History

LEAP_S: Final = 32 * DAY_S
LEAPS_A_YEAR_S: Final = 92 * DAY_S


def steady() -> float:
    """Seconds that passed on this machine, asleep or not; no user sets this clock."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boot) if boot is not None else time.monotonic()


class LedgerClock:
    """The time of a ledger whose entries are `history`. `wall` gives POSIX seconds, `steady` seconds since any moment.

    It counts what passes from its making on, and gaps before by the entries.
    """

    def __init__(self, history: History, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        self._history, self._wall, self._steady = history, wall, steady
        self.restart()

    def restart(self) -> None:
        """Count from the newest entry, which the operator vouches for or which was believed."""
        self._from, self._since = self._history.last_at, self._steady()

    @property
    def wall(self) -> float:
        return self._wall()

    def now(self) -> float:
        """POSIX seconds, as far as they are believed."""
        latest, wall = self._seen(), self._wall()
        return wall if latest < wall <= latest + LEAP_S else max(latest, self._history.last_at)

    def doubt(self) -> str:
        """Why the wall clock is not believed; nothing while it is."""
        wall, last = self._wall(), self._history.last_at
        if wall > self._seen() + LEAP_S:
            return (
                f"the clock says {_date(wall)}, but the last that this ledger saw was {_date(self._seen())}: if the "
                f"date is right, `sovfed client ledger confirm-clock {_date(wall)}`"
            )
        now = self.now()
        gaps = [seconds for end, seconds in self._history.gaps if end > now - YEAR_S]
        if now - last > UNSEEN_S:
            gaps.append(now - last)
        if sum(gaps) > LEAPS_A_YEAR_S:
            return (
                f"this ledger did not see {sum(gaps) / DAY_S:.0f} days of the last year pass, so it cannot tell a year "
                f"from a clock that was set: if the date is right, `sovfed client ledger confirm-clock {_date(wall)}`"
            )
        return ""

    def _seen(self) -> float:
        return self._from + max(0.0, self._steady() - self._since)


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%F")
