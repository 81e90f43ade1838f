"""What an institution lets be learnt about the persons of its population, over all runs and years.

One ledger a home, with an account for each population that `policy.yaml` names, whoever asks and from whatever file the
records are read; without a word to the contrary all records are of the home's own population. A further one is charged
only for studies that the operator has assigned to it in this very chain (`ledger_entries.py`, `Assigned`). A run
is granted its whole plan first; each release is paid for, on disk, before it leaves; what would pass the budget of
`policy.yaml` is refused with numbers, and the refusal is an entry too. A step that was started is spent, whatever
became of it; what a grant has not started comes back when the run is over, or was idle for `lapse_days`. A run without
differential privacy is an entry as well: what it learns has no bound.

Why no limit is ever passed: a grant is given only if ε of all that was spent, all that open grants may yet spend, and
the new plan is within the limits, and a release only if it is part of an open grant. What counts into a year only
falls, but for what open grants add. Unit, adjacency, sampling and accountant: `federation/privacy/accounting.py`.

Why no old copy pays: the institution signs each head that it tells the agency, and in each run, and after each start,
nothing is granted or paid until the agency has countersigned, for that run, a head that this ledger has, and none older
than it countersigned before. An agency that shows a head which the institution signed and the ledger lacks proves that
the ledger was rolled back, or that a copy of it went on elsewhere: it pays nothing more, restarts or not, until it was
restored. A head that the institution never signed proves nothing. The agency's word is the only witness here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from sovfed.clients.ledger.account import Account
from sovfed.clients.ledger.clock import LedgerClock, steady
from sovfed.clients.ledger.entries import (
    DAY_S,
    Assigned,
    Budget,
    Clock,
    Closed,
    Entry,
    Grant,
    Granted,
    History,
    Plan,
    Read,
    Refused,
    Release,
    Spent,
    Unbounded,
    Whose,
    study_key,
)
from sovfed.clients.ledger.file import LedgerFile, require_alone
from sovfed.clients.ledger.limits import too_much
from sovfed.clients.ledger.terms import difference, mismatch
from sovfed.federation.errors import PrivacyError

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.clients.ledger.file import RolledBack
    from sovfed.clients.ledger.lines import Line

log = logging.getLogger(__name__)
REFUSALS_A_DAY: Final = 1_000  # recorded; a server that asks again and again must not fill the disk
GRANTS_A_DAY: Final = 24
UNBOUNDED_A_DAY: Final = 300  # purposes of runs without privacy, some 100 runs; more are not answered
RUNS_KEPT: Final = 64  # for which a head was shown
HOME: Final = Whose(study="data")  # records of which nobody has said anything


@dataclass(frozen=True)
class Receipt:
    """Proof that a release is on disk: the head to send along with it, and ε of all spent releases without and with it.

    Both ε count up to 15 granted steps that are yet to come: for display, never too low.
    """

    head: str
    epsilon_before: float
    epsilon_after: float


class PrivacyLedger:
    """The ledger of `budget.population_name`, open for the one trainer of this home; safe to call from several threads.

    `others` are the budgets of further populations, by name. Raises PrivacyError if the file is missing, damaged or
    older than its countersigned head, or if the home has the ledger of another population; ServiceError if another
    trainer has it, or the disk fails. `wall` gives POSIX seconds, `steady` those of a clock that nobody can set.
    """

    def __init__(
        self,
        home: Path,
        budget: Budget,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady,
        others: Mapping[str, Budget] | None = None,
    ) -> None:
        self.name = budget.population_name
        self._budgets = {"": budget, **(others or {})}
        self._shown: dict[str, None] = {}  # runs in which the agency has shown a head that is here; never on disk
        self._lacking: tuple[tuple[str, Plan, int, int], str] | None = None  # the newest plan without room, and why
        self._lock = threading.Lock()
        require_alone(home, self.name)
        self._file = LedgerFile(home, self.name)
        try:
            self._history = replay(self._file.lines)
            self._clock = LedgerClock(self._history, wall, steady)
            self._beat()
            for name, agreed in self._budgets.items():
                if self._history.budgets.get(name) != agreed:
                    self._append(agreed)
            self._accounts = {
                name: Account(self._history, self._clock, agreed, name) for name, agreed in self._budgets.items()
            }
        except BaseException:
            self._file.close()
            raise

    @property
    def head(self) -> str:
        """SHA-256 of the last entry, hexadecimal."""
        return self._file.head

    @property
    def mark(self) -> RolledBack | None:
        """What the ledger lacks, if it was found rolled back."""
        return self._file.mark

    def position(self) -> tuple[int, bytes]:
        """The number of the last entry and its head, for the institution to sign and the coordinator to countersign.

        Raises PrivacyError if the ledger was rolled back: it tells nobody a head of its own.
        """
        with self._lock:
            if self._file.mark:
                raise PrivacyError(str(self._file.mark))
            return self._file.seq, bytes.fromhex(self._file.head)

    def authorise(self, run: str, plan: Plan, *, asked_in: str, whose: Whose = HOME) -> Grant:
        """Reserve all of `plan` for `run`, or raise PrivacyError with what would fit; asked again, the same grant.

        `asked_in` is the run's name on the wire, in which the agency must have shown a head that is here; `whose` says
        who is charged.
        """
        with self._lock:
            self._require_witness(run, plan.purpose, asked_in)
            self._close_idle()
            account = self._account(run, plan.purpose, whose)
            granted = self._history.grants.get((run, plan.purpose))
            if granted:
                grant = self._again(granted, plan, whose)
                self._know(whose)  # a run may go on over records that another file or study has by now
                return grant
            agreed = account.budget.delta
            if plan.delta != agreed:
                self._refuse(run, plan.purpose, f"delta is {plan.delta:g}, policy.yaml says {agreed:g}")
            self._require_rare(run, plan.purpose)
            self._close_finished()
            state = (whose.population, plan, self._history.used, int(self._clock.now() // DAY_S))
            if self._lacking is not None and self._lacking[0] == state:  # a run asks again in every round
                self._refuse(run, plan.purpose, self._lacking[1])
            limits, delta = account.limits(), plan.delta
            for limit in limits:
                if limit.after(plan.event, delta) > limit.epsilon:
                    self._lacking = (state, too_much(limit, limits, plan.event, delta))
                    self._refuse(run, plan.purpose, self._lacking[1])
            lifetime = limits[0]
            before, after = lifetime.used.epsilon(delta), lifetime.after(plan.event, delta)
            self._know(whose)
            grant = Grant(plan, run, before, after, whose.population)
            self._append(grant)
            return grant

    def would_refuse(self, run: str, plan: Plan, *, whose: Whose = HOME) -> str:
        """Why `authorise` would refuse `plan`, as far as that can be said before a head was shown; "" if nothing speaks
        against it. Who asked for too much is written down, as `authorise` does; nothing else is.
        """
        with self._lock:
            if reason := self._why_not(self._sealed(whose)):
                return reason
            if (run, plan.purpose) in self._history.grants:
                return ""
            account = self._accounts[whose.population]
            if plan.delta != account.budget.delta:
                return f"delta is {plan.delta:g}, policy.yaml says {account.budget.delta:g}"
            limits = account.limits()
            lacking = (limit for limit in limits if limit.after(plan.event, plan.delta) > limit.epsilon)
            reason = next((too_much(limit, limits, plan.event, plan.delta) for limit in lacking), "")
            if reason:
                with contextlib.suppress(PrivacyError):
                    self._refuse(run, plan.purpose, reason)
            return reason

    def spend(self, grant: Grant, release: Release, *, asked_in: str) -> Receipt:
        """Record `release`; when this returns it is on disk, and may leave. The very same release may be sent again.

        Raises PrivacyError, and then nothing may leave: the release is not what was granted, or not the next in order.
        """
        with self._lock:
            granted = self._payable(grant, release, asked_in)
            account = self._accounts[grant.population]
            before = account.epsilon
            if granted.releases.get((release.round, release.attempt)) == release:
                return Receipt(self.head, before, before)
            account.charge(release.event, granted.reserved)
            self._append(Spent(release, grant.run, grant.plan.purpose, account.epsilon))
            return Receipt(self.head, before, account.epsilon)

    def digest(self, content: bytes) -> str:
        """What a release's bytes are told by in its entry.

        They are noised for a sum alone, and few values can be guessed: whoever is shown the ledger must not try them.
        """
        return self._file.digest(content)

    def check(self, grant: Grant, release: Release, *, asked_in: str) -> None:
        """Raise PrivacyError, before a record is touched, where `spend` would, whatever the release's digest is."""
        with self._lock:
            self._payable(grant, release, asked_in)

    def enter_unbounded(self, run: str, purpose: str, task: str, whose: Whose = HOME) -> None:
        """Record that `run` is answered without privacy; on disk when this returns, once for each purpose.

        Raises PrivacyError, and then nothing may leave, after too many a day or on a ledger that was rolled back.
        """
        with self._lock:
            if self._file.mark:
                self._refuse(run, purpose, str(self._file.mark))
            self._account(run, purpose, whose)
            earlier = self._history.unbounded.get((run, purpose))
            if earlier and earlier[1].population != whose.population:
                self._refuse(run, purpose, "it was answered for another population before")
            if earlier:  # its first entry is no word about these records: a run may ask for several tasks
                self._know(whose)
                return
            recent = self._clock.now() - DAY_S
            today = sum(at > recent for at, _ in self._history.unbounded.values())
            if today >= UNBOUNDED_A_DAY:
                self._refuse(run, purpose, f"{today} other entries of runs without privacy within a day are enough")
            self._know(whose)
            self._append(Unbounded(run, purpose, task, whose.population))

    def assign(self, whose: Whose, because: str, *, apart: bool = False) -> Assigned:
        """Record that the persons in the records of `whose.study` are those of `whose.population`, and what that means.

        They inherit what was charged for these records so far, unless the operator says that they are others (`apart`).
        Raises PrivacyError if the policy has no such population, or the ledger was rolled back.
        """
        with self._lock:
            if self._file.mark:
                raise PrivacyError(str(self._file.mark))
            if whose.population not in self._budgets:
                raise PrivacyError(f"policy.yaml has no population '{whose.population}' ({self._named()})")
            whose = self._sealed(whose)
            heirs = () if apart else self._history.heirs_of(whose)
            entry = Assigned(whose.study, because, whose.keys, whose.population, heirs, apart)
            self._append(entry)
            return entry

    def why_not(self, whose: Whose) -> str:
        """Why runs over these records are charged to nobody; "" if they are."""
        with self._lock:
            return self._why_not(self._sealed(whose))

    def beat(self) -> None:
        """Record once a day that the time was seen to pass, so that a clock that jumps can be told."""
        with self._lock:
            self._beat()

    def confirm_clock(self) -> None:
        """Record that the operator vouches for the date of the wall clock: what is spent counts from it."""
        with self._lock:
            self._write(Clock(confirmed=True), self._clock.wall)
            self._clock.restart()

    def next_attempt(self, grant: Grant, round: int) -> int:
        """The number of the first attempt at `round` that was not spent yet."""
        with self._lock:
            granted = self._history.grants[grant.run, grant.plan.purpose]
            return 1 + max(
                (attempt for released_round, attempt in granted.releases if released_round == round), default=-1
            )

    def close(self, run: str, purpose: str = "train") -> int:
        """End the grant of `run`; returns how many never-started steps the budget gets back.

        Raises PrivacyError if there is no such grant.
        """
        with self._lock:
            granted = self._history.grants.get((run, purpose))
            if granted is None:
                raise PrivacyError(f"run '{run}', {purpose}: no such grant in this ledger")
            return self._close(granted)

    def countersign(self, run: str, seq: int, head: str, signature: bytes, *, ours: bool) -> bool:
        """Whether entry `seq` of this ledger has `head`, for which the coordinator's `signature` in `run` was verified.

        `ours`: the institution itself signed that head. If it did and the ledger lacks it, PrivacyError: from then on
        the ledger pays for nothing until it was restored. What the institution never signed is of no consequence.
        """
        with self._lock:
            if self._file.has(seq, head):
                self._file.countersign(run, seq, head, signature)
                newest = self._file.countersigned
                if newest and seq >= newest.seq:  # an older one than it signed before shows nothing
                    self._shown[run] = None
                    while len(self._shown) > RUNS_KEPT:
                        del self._shown[next(iter(self._shown))]
                return True
            if ours:
                raise PrivacyError(str(self._file.set_mark(seq, head)))
            log.warning("run %s: the agency shows an unknown head, which this institution never signed; ignored", run)
            return False

    def restored(self) -> RolledBack | None:
        """Pay again after the ledger was restored; what it lacked. Raises PrivacyError if it lacks it still."""
        with self._lock:
            return self._file.clear_mark()

    def verify(self) -> None:
        """Read the whole file again and check it. Raises PrivacyError if it is not what was written."""
        with self._lock:
            self._file.reread()

    def unlock(self) -> None:
        """Let another trainer open the ledger; this object is of no more use."""
        self._file.close()

    def _close(self, granted: Granted) -> int:
        reserved = granted.reserved
        if not granted.closed:
            self._append(Closed(granted.grant.run, granted.grant.plan.purpose, reserved))
            account = self._accounts.get(granted.grant.population)
            if account is not None:  # else of a population that the policy no longer has
                account.closed()
        return reserved

    def _payable(self, grant: Grant, release: Release, asked_in: str) -> Granted:
        """The grant that `release` is the next of, or the very same again. Raises PrivacyError."""
        run, purpose = grant.run, grant.plan.purpose
        self._require_witness(run, purpose, asked_in)
        self._close_idle()
        granted = self._history.grants.get((run, purpose))
        if granted is None or granted.grant != grant:
            self._refuse(run, purpose, "the grant is not one of this ledger")
        if granted.releases.get((release.round, release.attempt)) != release:
            account = self._accounts.get(grant.population)
            gone = "policy.yaml no longer has the grant's population"
            wrong = (account.blocked if account else gone) or mismatch(granted, release)
            if wrong:
                self._refuse(run, purpose, wrong)
        return granted

    def _require_witness(self, run: str, purpose: str, asked_in: str) -> None:
        """Raises PrivacyError unless this ledger is the newest, as far as the agency knows, and its clock is right."""
        if self._file.mark:
            self._refuse(run, purpose, str(self._file.mark))
        if asked_in not in self._shown:
            self._refuse(run, purpose, "the agency has not countersigned, in this run, a head that this ledger has")
        doubt = self._clock.doubt()
        if doubt:
            self._refuse(run, purpose, doubt)

    def _require_rare(self, run: str, purpose: str) -> None:
        """Raises PrivacyError if too many grants were given within a day: each makes accounting dearer, for ever."""
        recent = self._clock.now() - DAY_S
        if sum(granted.at > recent for granted in self._history.grants.values()) >= GRANTS_A_DAY:
            self._refuse(run, purpose, f"{GRANTS_A_DAY} grants within a day are enough")

    def _account(self, run: str, purpose: str, whose: Whose) -> Account:
        """The account that `whose` are charged to. Raises PrivacyError where the ledger knows them as others."""
        if reason := self._why_not(self._sealed(whose)):
            self._refuse(run, purpose, reason)
        return self._accounts[whose.population]

    def _why_not(self, whose: Whose) -> str:
        if whose.population not in self._budgets:
            return f"{whose.study} is of population '{whose.population}', and policy.yaml has {self._named()}"
        return self._history.why_not(whose)

    def _named(self) -> str:
        return ", ".join(name or self.name for name in self._budgets)

    def _sealed(self, whose: Whose) -> Whose:
        """`whose` with keys that tell nobody where the records lie: a ledger is exported, and its heads are shown."""
        return dataclasses.replace(whose, keys=tuple(self._file.token(key) for key in whose.keys))

    def _know(self, whose: Whose) -> None:
        """Enter what the records are known by, once, before the first run over them is."""
        sealed = self._sealed(whose)
        new = [key for key in (study_key(sealed.study), *sealed.keys) if key not in self._history.known]
        if new and sealed.keys:
            self._append(Read(tuple(new), sealed.population))

    def _close_idle(self) -> None:
        """Take back the steps of grants that released nothing for `lapse_days`."""
        now = self._clock.now()
        for granted in self._history.grants.values():
            agreed = self._budgets.get(granted.grant.population, self._budgets[""])
            idle = now - agreed.lapse_days * DAY_S
            if not granted.closed and granted.used_at < idle:
                self._close(granted)

    def _close_finished(self) -> None:
        """Take back the spare steps of runs whose last round was spent: they have no more use for them."""
        for granted in self._history.grants.values():
            if not granted.closed and granted.last and granted.last.round == granted.grant.plan.rounds:
                self._close(granted)

    def _again(self, found: Granted, plan: Plan, whose: Whose) -> Grant:
        run, changed = found.grant.run, difference(plan, found.grant.plan)
        if found.grant.population != whose.population:
            changed = f"population is '{whose.population}', granted '{found.grant.population}'"
        if changed:
            self._refuse(run, plan.purpose, f"{changed}: a grant never changes")
        if found.closed:
            self._refuse(run, plan.purpose, "the grant was closed; start a new run")
        return found.grant

    def _beat(self) -> None:
        if self._clock.now() - self._history.last_at >= DAY_S:
            self._append(Clock())

    def _append(self, entry: Entry) -> None:
        self._write(entry, self._clock.now())

    def _write(self, entry: Entry, at: float) -> None:
        line = self._file.append(entry, at)
        self._history.add(line.at, entry)

    def _refuse(self, run: str, purpose: str, reason: str) -> NoReturn:
        recorded = self._history.refusals[-REFUSALS_A_DAY:]
        if len(recorded) < REFUSALS_A_DAY or recorded[0][0] <= self._clock.now() - DAY_S:
            self._append(Refused(run, purpose, reason[:500]))
        raise PrivacyError(f"run '{run}', {purpose}: {reason}")


def replay(lines: Iterable[Line]) -> History:
    """The fold of a ledger's lines."""
    history = History()
    for line in lines:
        history.add(line.at, line.entry)
    return history
