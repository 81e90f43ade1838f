"""One population's account in a privacy ledger: what is spent of its budget, and what there is room for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.clients.ledger.entries import YEAR_S, Budget, History, merged
from sovfed.clients.ledger.limits import Limit
from sovfed.federation.privacy.accounting import MAX_RELEASES, Accountant, gathered
from sovfed.federation.privacy.events import Event

if TYPE_CHECKING:
    from sovfed.clients.ledger.clock import LedgerClock

_AHEAD: Final = 15  # steps that ε is computed ahead of a release, as composing takes many times an fsync


class Account:
    """What `population` has spent under `budget`, kept up to date by `charge` and `closed`."""

    def __init__(self, history: History, clock: LedgerClock, budget: Budget, population: str) -> None:
        self._history, self._clock, self.budget, self._population = history, clock, budget, population
        self._spent = Accountant().plus(*gathered(history.spent(population=population)))
        self.epsilon = self._spent.epsilon(budget.delta)
        self._ahead: dict[tuple[float, float], int] = {}
        self.blocked = self._exceeded()

    def limits(self) -> list[Limit]:
        """Each limit with what is spent or reserved of it; a clock set back makes the year longer, never shorter."""
        budget, history, population = self.budget, self._history, self._population
        reserved = history.reserved(population)
        lifetime = history.spent(population=population)
        year = history.spent(self._clock.now() - YEAR_S, population=population)
        ever = merged([*lifetime, *reserved])
        recent = ever if year == lifetime else merged([*year, *reserved])
        used = Accountant().plus(*gathered(ever))
        used_recently = used if recent == ever else Accountant().plus(*gathered(recent))
        share, each = budget.max_share_per_run * budget.annual_epsilon, budget.epsilon / MAX_RELEASES
        return [
            Limit("epsilon", "", budget.epsilon, used, tuple(ever), each),
            Limit("annual_epsilon", " within 366 days", budget.annual_epsilon, used_recently, tuple(recent), each),
            Limit("max_share_per_run", " in this run", share, Accountant(), (), each),
        ]

    def charge(self, event: Event, reserved: int) -> None:
        """Add `event` to what is spent and keep ε at least as high; `reserved` steps are left of its grant, with it."""
        kind = (event.noise_multiplier, event.sampling_rate)
        covered = self._ahead.get(kind, 0)
        if covered >= event.count:
            self._ahead[kind] = covered - event.count
        else:
            self._ahead[kind] = min(_AHEAD, reserved - event.count)
            ahead = [Event(*of, count) for of, count in self._ahead.items() if count]
            self.epsilon = self._spent.plus(*merged([event, *ahead])).epsilon(self.budget.delta)
        self._spent = self._spent.plus(event)

    def closed(self) -> None:
        """A grant of the population came to its end."""
        self._ahead, self.epsilon = {}, self._spent.epsilon(self.budget.delta)
        self.blocked = self.blocked and self._exceeded()

    def _exceeded(self) -> str:
        """Why open grants may not go on, after the institution lowered its limits; else nothing."""
        if not self._history.reserved(self._population):
            return ""
        for limit in self.limits():
            used = limit.used.epsilon(self.budget.delta)
            if used > limit.epsilon:
                return (
                    f"open grants would take the population to ε={used:.2f}, over the limit {limit.name} "
                    f"{limit.epsilon:.2f} that policy.yaml says now"
                )
        return ""
