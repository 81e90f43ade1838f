"""What an institution lets be learnt about the persons of one dataset, over all runs and years.

One ledger for each dataset (cohorts that overlap share one), whoever asks. A run is granted its whole plan first; each
release is paid for, on disk, before it leaves; what would pass the budget of `policy.yaml` is refused with numbers, and
the refusal is an entry too. A step that was started is spent, whatever became of it; only `close` gives steps back.

Why no limit is ever passed: a grant is given only if ε of all that was spent, all that open grants may yet spend, and
the new plan is within the limits, and a release only if it is part of an open grant. What counts into a year only
falls, but for what open grants add. Unit, adjacency, sampling and accountant: `federation/privacy/accounting.py`.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sovfed.clients.ledger_entries import (
    YEAR_S,
    Budget,
    Closed,
    Entry,
    Grant,
    Granted,
    History,
    Plan,
    Refused,
    Release,
    Spent,
    merged,
)
from sovfed.clients.ledger_file import LedgerFile
from sovfed.clients.ledger_terms import difference, mismatch
from sovfed.federation.errors import PrivacyError, ProtocolError
from sovfed.federation.privacy.accounting import Accountant
from sovfed.federation.privacy.events import Event

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.clients.ledger_lines import Line

REFUSALS_A_DAY: Final = 1_000  # recorded; a server that asks again and again must not fill the disk
_AHEAD: Final = 15  # steps that ε is computed ahead of a release, as composing takes many times an fsync
_MOST_NOISE: Final = 1e6


@dataclass(frozen=True)
class Receipt:
    """Proof that a release is on disk: the head to send along with it, and ε of all spent releases without and with it.

    Both ε count up to 15 granted steps that are yet to come: for display, never too low.
    """

    head: str
    epsilon_before: float
    epsilon_after: float


@dataclass(frozen=True)
class _Limit:
    """A limit on ε, by its name in policy.yaml, and what is spent or reserved of it."""

    name: str
    span: str
    epsilon: float
    used: Accountant

    def after(self, event: Event, delta: float) -> float:
        return self.used.plus(event).epsilon(delta)


class PrivacyLedger:
    """The ledger of `dataset`, open for the one trainer of this home; safe to call from several threads.

    Raises PrivacyError if the file is missing, damaged or older than its countersigned head; ServiceError if another
    trainer has it, or the disk fails. `clock` gives POSIX seconds.
    """

    def __init__(self, home: Path, dataset: str, budget: Budget, clock: Callable[[], float] = time.time) -> None:
        self.dataset = dataset
        self._budget, self._clock = budget, clock
        self._rolled_back = ""
        self._lock = threading.Lock()
        self._file = LedgerFile(home, dataset)
        try:
            self._history = replay(self._file.lines)
            if self._history.budget != budget:
                self._append(budget)
            self._spent = Accountant().plus(*self._history.spent())
            self._epsilon = self._spent.epsilon(budget.delta)
            self._ahead: dict[tuple[float, float], int] = {}
            self._blocked = self._exceeded()
        except BaseException:
            self._file.close()
            raise

    @property
    def head(self) -> str:
        """SHA-256 of the last entry, for the coordinator to countersign."""
        return self._file.head

    def authorise(self, run: str, plan: Plan) -> Grant:
        """Reserve all of `plan` for `run`, or raise PrivacyError with what would fit; asked again, the same grant."""
        with self._lock:
            if self._rolled_back:
                self._refuse(run, plan.purpose, self._rolled_back)
            found = self._history.grants.get((run, plan.purpose))
            if found:
                return self._again(found, plan)
            if plan.delta != self._budget.delta:
                self._refuse(run, plan.purpose, f"delta is {plan.delta:g}, policy.yaml says {self._budget.delta:g}")
            self._close_finished()
            limits, delta = self._limits(), plan.delta
            for limit in limits:
                if limit.after(plan.event, delta) > limit.epsilon:
                    self._refuse(run, plan.purpose, _too_much(limit, limits, plan.event, delta))
            lifetime = limits[0]
            grant = Grant(plan, run, lifetime.used.epsilon(delta), lifetime.after(plan.event, delta))
            self._append(grant)
            return grant

    def spend(self, grant: Grant, release: Release) -> Receipt:
        """Record `release`; when this returns it is on disk, and may leave. The very same release may be sent again.

        Raises PrivacyError, and then nothing may leave: the release is not what was granted, or not the next in order.
        """
        with self._lock:
            run, purpose = grant.run, grant.plan.purpose
            granted = self._history.grants.get((run, purpose))
            if granted is None or granted.grant != grant:
                self._refuse(run, purpose, "the grant is not one of this ledger")
            if granted.releases.get((release.round, release.attempt)) == release:
                return Receipt(self.head, self._epsilon, self._epsilon)
            wrong = self._rolled_back or self._blocked or mismatch(granted, release)
            if wrong:
                self._refuse(run, purpose, wrong)
            before = self._epsilon
            self._charge(release.event, granted.reserved)
            self._append(Spent(release, run, purpose, self._epsilon))
            return Receipt(self.head, before, self._epsilon)

    def next_attempt(self, grant: Grant, round: int) -> int:
        """The number of the first attempt at `round` that was not spent yet."""
        with self._lock:
            granted = self._history.grants[grant.run, grant.plan.purpose]
            return 1 + max((attempt for done, attempt in granted.releases if done == round), default=-1)

    def close(self, run: str, purpose: str = "train") -> int:
        """End the grant of `run`; returns how many never-started steps the budget gets back.

        Raises PrivacyError if there is no such grant.
        """
        with self._lock:
            granted = self._history.grants.get((run, purpose))
            if granted is None:
                raise PrivacyError(f"run '{run}', {purpose}: no such grant in this ledger")
            return self._close(granted)

    def countersign(self, head: str, signature: bytes, check: Callable[[bytes, bytes], None]) -> None:
        """Keep the coordinator's `signature` over the 32 bytes of `head`, once `check(head, signature)` has not raised.

        Ask the coordinator for the newest it has before a run. Raises ProtocolError if `head` is not hexadecimal, and
        PrivacyError if this ledger never had it; from then on it pays for nothing until it was restored.
        """
        try:
            signed = bytes.fromhex(head)
        except ValueError as error:
            raise ProtocolError("a head is 64 hexadecimal characters") from error
        check(signed, signature)
        with self._lock:
            try:
                self._file.countersign(head, signature)
            except PrivacyError as error:
                self._rolled_back = str(error)
                raise

    def verify(self) -> None:
        """Read the whole file again and check it. Raises PrivacyError if it is not what was written."""
        with self._lock:
            self._file.reread()

    def unlock(self) -> None:
        """Let another trainer open the ledger; this object is of no more use."""
        self._file.close()

    def _close(self, granted: Granted) -> int:
        left = granted.reserved
        if not granted.closed:
            self._append(Closed(granted.grant.run, granted.grant.plan.purpose, left))
            self._ahead, self._epsilon = {}, self._spent.epsilon(self._budget.delta)
            self._blocked = self._blocked and self._exceeded()
        return left

    def _close_finished(self) -> None:
        """Take back the spare steps of runs whose last round was spent: they have no more use for them."""
        for granted in self._history.grants.values():
            if not granted.closed and granted.last and granted.last.round == granted.grant.plan.rounds:
                self._close(granted)

    def _again(self, found: Granted, plan: Plan) -> Grant:
        run, changed = found.grant.run, difference(plan, found.grant.plan)
        if changed:
            self._refuse(run, plan.purpose, f"{changed}: a grant never changes")
        if found.closed:
            self._refuse(run, plan.purpose, "the grant was closed; start a new run")
        return found.grant

    def _limits(self) -> list[_Limit]:
        """Both limits with all that is spent or reserved; a clock set back makes the year longer, never shorter."""
        budget, history = self._budget, self._history
        reserved = history.reserved()
        lifetime, year = history.spent(), history.spent(after=self._clock() - YEAR_S)
        used = Accountant().plus(*merged([*lifetime, *reserved]))
        recent = used if year == lifetime else Accountant().plus(*merged([*year, *reserved]))
        return [
            _Limit("epsilon", "", budget.epsilon, used),
            _Limit("annual_epsilon", " within 366 days", budget.annual_epsilon, recent),
        ]

    def _exceeded(self) -> str:
        """Why open grants may not go on, after the institution lowered its limits; else nothing."""
        if not self._history.reserved():
            return ""
        for limit in self._limits():
            used = limit.used.epsilon(self._budget.delta)
            if used > limit.epsilon:
                return (
                    f"open grants would take the population to ε={used:.2f}, over the limit {limit.name} "
                    f"{limit.epsilon:.2f} that policy.yaml says now"
                )
        return ""

    def _charge(self, event: Event, reserved: int) -> None:
        """Add `event` to what is spent and keep ε at least as high; `reserved` steps are left of its grant, with it."""
        kind = (event.noise_multiplier, event.sampling_rate)
        covered = self._ahead.get(kind, 0)
        if covered >= event.count:
            self._ahead[kind] = covered - event.count
        else:
            self._ahead[kind] = min(_AHEAD, reserved - event.count)
            ahead = [Event(*of, count) for of, count in self._ahead.items() if count]
            self._epsilon = self._spent.plus(*merged([event, *ahead])).epsilon(self._budget.delta)
        self._spent = self._spent.plus(event)

    def _append(self, entry: Entry) -> None:
        line = self._file.append(entry, self._clock())
        self._history.add(line.at, entry)

    def _refuse(self, run: str, purpose: str, reason: str) -> NoReturn:
        recorded = self._history.refusals[-REFUSALS_A_DAY:]
        if len(recorded) < REFUSALS_A_DAY or recorded[0][0] <= self._clock() - 86_400:
            self._append(Refused(run, purpose, reason[:500]))
        raise PrivacyError(f"run '{run}', {purpose}: {reason}")


def replay(lines: Iterable[Line]) -> History:
    """The fold of a ledger's lines."""
    history = History()
    for line in lines:
        history.add(line.at, line.entry)
    return history


def _too_much(limit: _Limit, limits: list[_Limit], event: Event, delta: float) -> str:
    before, after = limit.used.epsilon(delta), limit.after(event, delta)
    others = ", ".join(f"{other.name} {other.epsilon:.2f}" for other in limits if other is not limit)
    return (
        f"this run would take the population from ε={before:.2f} to {after:.2f} at δ={delta:g}{limit.span}, over the "
        f"limit {limit.name} {limit.epsilon:.2f} of policy.yaml ({others}); {_what_fits(limits, event, delta)}"
    )


def _what_fits(limits: list[_Limit], event: Event, delta: float) -> str:
    """How many steps of `event`, or which noise multiplier for all of them, every limit has room for."""

    def fits(**change: Any) -> bool:
        changed = dataclasses.replace(event, **change)
        return all(limit.after(changed, delta) <= limit.epsilon for limit in limits)

    few, many = 0, event.count  # 0 fit, all do not
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if fits(count=middle) else (few, middle)
    if not fits(noise_multiplier=_MOST_NOISE):
        return "nothing more fits"
    low, high = event.noise_multiplier, _MOST_NOISE
    while high / low > 1.001:
        middle_z = math.sqrt(low * high)
        low, high = (low, middle_z) if fits(noise_multiplier=middle_z) else (middle_z, high)
    return f"at most {few} more steps fit, or all of them with a noise multiplier of at least {high * 1.0005:.4g}"
