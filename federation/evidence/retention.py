"""What entries of a log say is deleted by rule once it is old; their hashes stay, and an entry tells what and why.

So the tree, each head, cosignature and proof holds as before, and a deletion that no such entry tells of is noticed.
"""

from __future__ import annotations

import bisect
import json
import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.config import LEAST_LOG_DAYS
from sovfed.federation.errors import EvidenceError, PolicyError
from sovfed.federation.evidence.entries import DAMAGE, NAME, RETENTION, read_entry
from sovfed.federation.evidence.notes import check_cosignature, read_checkpoint
from sovfed.federation.evidence.noting import Noting
from sovfed.federation.evidence.store import LogReader, delete_contents, has_log, shrink
from sovfed.federation.evidence.witness import holding_cosignatures, problems
from sovfed.federation.identity import load_roots
from sovfed.federation.text import day

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)
DAY_S: Final = 86_400
NEWEST: Final = 64  # entries that stay whatever their age
MOST: Final = 50_000  # entries in one deletion, so that nobody waits for it for long
MOST_RANGES: Final = 1_500  # what fits into one entry
FIRST_S: Final = 600.0  # after a start
WEEK_S: Final = 7 * DAY_S  # between two deletions that nobody asked for
LASTING: Final = frozenset((DAMAGE, "model", "release", RETENTION, "split", "trust", "unlearning", "withdrawal"))
LASTING_EVENTS: Final = frozenset(("purged", "withdrawn"))  # of orders
COMPARED: Final = frozenset(("policy", "revocation"))  # kinds whose newest entry tells whether anything changed


@dataclass(frozen=True)
class Rule:
    """What entries say is kept `days` (0: for ever), as the setting `name` has it."""

    days: int
    name: str


@dataclass(frozen=True)
class Terms:
    """A home's rule; `needed` makes a judge who says why an entry must stay longer, "" if it need not."""

    rule: Rule
    needed: Callable[[], Callable[[Mapping[str, Any]], str]]


@dataclass(frozen=True)
class Retired:
    """An entry of the log, at `at`, by which the contents of those in `ranges`, older than `before`, were deleted."""

    seq: int
    at: int
    days: int
    before: int
    count: int
    ranges: tuple[tuple[int, int], ...]

    def told(self) -> str:
        """It in plain words."""
        span = f"{self.ranges[0][0]} to {self.ranges[-1][1]}"
        return (
            f"the content of {self.count} entries, {span}, is no longer kept: entry {self.seq}, {_day(self.at)}, by "
            f"the rule of {self.days} days, what was older than {_day(self.before)}"
        )


def read_retired(seq: int, values: Mapping[str, Any]) -> Retired:
    """What entry `seq`, of kind retention, says. Raises EvidenceError where that is no deletion by a rule."""
    try:
        ranges = tuple((int(first), int(last)) for first, last in values["ranges"])
        at, days, before, count = (int(values[name]) for name in ("at", "days", "before", "count"))
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError("does not say what was deleted") from error
    retired = Retired(seq, at, days, before, count, ranges)
    ends = [-1, *(number for pair in ranges for number in pair)]
    in_order = all(first <= last for first, last in ranges) and all(
        before < after for before, after in zip(ends[0::2], ends[1::2], strict=False)
    )
    if not ranges or not in_order or retired.count != sum(last - first + 1 for first, last in ranges):
        raise EvidenceError("does not say what was deleted")
    too_new = ranges[-1][1] + NEWEST > seq
    if retired.days < LEAST_LOG_DAYS or retired.before > retired.at - retired.days * DAY_S or too_new:
        raise EvidenceError(
            f"deleted what no rule allows: at least {LEAST_LOG_DAYS} days and the newest {NEWEST} entries are kept"
        )
    return retired


class Deleted:
    """Of which numbers from a first to a last `retired` tell that what these entries said was deleted."""

    def __init__(self, retired: Iterable[Retired]) -> None:
        self._ranges: list[tuple[int, int]] = []
        for first, last in sorted(pair for entry in retired for pair in entry.ranges):
            if self._ranges and first <= self._ranges[-1][1] + 1:
                self._ranges[-1] = self._ranges[-1][0], max(last, self._ranges[-1][1])
            else:
                self._ranges.append((first, last))

    def __contains__(self, gap: tuple[int, int]) -> bool:
        place = bisect.bisect(self._ranges, (gap[0], sys.maxsize)) - 1
        return place >= 0 and gap[1] <= self._ranges[place][1]


class Contents:
    """Which contents a log that is checked has, and by which of its entries the others were deleted."""

    def __init__(self) -> None:
        self.retired: list[Retired] = []
        self.reached = -1  # the entry that is looked at
        self.gone, self._unexplained = set[int](), set[int]()
        self._times: list[tuple[int, int]] = []

    def missing(self, seq: int) -> None:
        """Entry `seq` has no content any more."""
        self.gone.add(seq)
        self._unexplained.add(seq)

    def kept(self, seq: int, values: Mapping[str, Any]) -> None:
        """Entry `seq` is what was written and says `values`. Raises EvidenceError if it tells of another deletion."""
        if values.get("kind") == RETENTION:
            retired = read_retired(seq, values)
            self._explain(retired)
            self.retired.append(retired)
        self._times.append((seq, at if isinstance(at := values.get("at"), int) else 0))

    def _explain(self, retired: Retired) -> None:
        """Nothing stays before a deletion that is younger than what was deleted, unless its clock was ahead."""
        younger = (seq for seq, at in self._times if retired.before <= at <= retired.at)
        if (first := next(younger, retired.seq)) < retired.ranges[-1][1]:
            raise EvidenceError(f"deleted what no rule allows: entry {first} is younger, and stands before the last")
        for first, last in retired.ranges:
            told = set(range(first, last + 1)) if last - first < retired.seq else set()
            if not told or not told <= self._unexplained:
                raise EvidenceError(f"says that the contents of {first} to {last} were deleted, and that is not so")
            self._unexplained -= told

    def require_explained(self, others: Iterable[Retired] = (), because: str = "") -> None:
        """Raise EvidenceError, which names the first entry of which nothing tells where its content went, nor `others`.

        `because` is what is wrong with what tells of it.
        """
        deleted = Deleted(others)
        if left := [seq for seq in self._unexplained if (seq, seq) not in deleted]:
            raise EvidenceError(f"entry {min(left)} is missing" + (f"; {because}" if because else ""))


@dataclass
class Plan:
    """What would be deleted now: `ranges` of entries older than `before`, by kind, and why others stay."""

    rule: Rule
    before: int
    ranges: list[tuple[int, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    stays: Counter[str] = field(default_factory=Counter)
    more: bool = False  # than one deletion takes

    @property
    def count(self) -> int:
        """How many entries' contents would go."""
        return self.kinds.total()

    def told(self) -> list[str]:
        """It in plain words."""
        lines = [f"{self.rule.name}: {self.rule.days} days; older than {_day(self.before)}: {self.count} entries to go"]
        lines += [f"  {count} × {kind}" for kind, count in sorted(self.kinds.items())]
        lines += [f"  {count} stay: {why}" for why, count in sorted(self.stays.items())]
        return [*lines, *(["  and more, by the next call"] if self.more else [])]


def plan(home: Path, terms: Terms, now: float, before: int | None = None) -> Plan:
    """What the rule, or the earlier time `before`, lets go of the log of `home`; nothing is deleted.

    Only of the beginning of the log that another home has cosigned, and old by that one's clock too. Raises PolicyError
    where the rule keeps all, or what `before` (Unix time) asks for, or logs do not agree.
    """
    rule = terms.rule
    if not rule.days:
        raise PolicyError(f"{rule.name} is 0: everything is kept for ever")
    if problem := problems(home):
        raise PolicyError(f"nothing is deleted while logs do not agree: {'; '.join(problem.values())}")
    size, seen = cosigned(home)
    latest = int(min(now, seen)) - rule.days * DAY_S
    if before is not None and before > int(now) - rule.days * DAY_S:
        raise PolicyError(f"{rule.name} keeps {rule.days} days: what is younger than {_day(latest)} stays")
    made, reader = Plan(rule, latest if before is None else min(before, latest)), LogReader(home)
    if not size:
        made.stays["nobody has cosigned them, so nobody would notice what else went"] = reader.extent()
        return made
    needed = terms.needed()
    newest, active = dict[str, int](), set[str]()
    for seq, data in reader.entries():
        values = json.loads(data)
        newest[values["kind"]] = seq
        if values["at"] >= made.before and isinstance(name := values.get(NAME), str):
            active.add(name)
    for seq, data in reader.entries(0, min(size, reader.extent() - NEWEST)):
        values = json.loads(data)
        if made.before <= values["at"] <= now:
            break
        compared = values["kind"] in COMPARED and seq == newest[values["kind"]]
        if why := _stays(values, made.before, active, compared=compared) or needed(values):
            made.stays[why] += 1
        elif not _add(made, seq, values["kind"]):
            break
    return made


def prune(home: Path, made: Plan) -> int:
    """Delete what the plan says, and make the log as small as it is then; the entry that tells of it, -1 for nothing.

    Raises EvidenceError where an entry is not what was written: then nothing is deleted.
    """
    seq = -1
    if made.ranges:
        fields = {"rule": made.rule.name, "days": made.rule.days, "before": made.before, "count": made.count}
        seq = delete_contents(home, made.ranges, **fields)
        Noting.leave_nothing(home)
    shrink(home)
    return seq


class Retention:
    """Deletes by a home's terms of its own accord: once a week at most, a bounded part at a time."""

    def __init__(self, home: Path, terms: Terms, clock: Callable[[], float] = time.monotonic) -> None:
        self._home, self._terms, self._clock = home, terms, clock
        self._next = clock() + FIRST_S

    def look(self) -> None:
        """Delete what is due. Call it now and then; it raises what `plan` and `prune` do."""
        if not self._terms.rule.days or self._clock() < self._next or not has_log(self._home):
            return
        self._next, now = self._clock() + DAY_S, time.time()
        shrink(self._home)  # where that was not reached before
        if any(now - retired.at < WEEK_S for retired in retired_by(LogReader(self._home))):
            return
        made = plan(self._home, self._terms, now)
        if (seq := prune(self._home, made)) >= 0:
            log.info("what %d entries said was deleted by %s: entry %d", made.count, made.rule.name, seq)


def _stays(values: Mapping[str, Any], before: int, active: set[str], *, compared: bool) -> str:
    """Why an entry stays whatever its home says; "" if it need not."""
    if values["kind"] in LASTING or values.get("event") in LASTING_EVENTS:
        return "of a kind that is kept for ever"
    if values["at"] >= before:
        return "dated after now"
    if compared:
        return "the newest settings"
    return "its run has younger entries" if values.get(NAME) in active else ""


def _add(made: Plan, seq: int, kind: str) -> bool:
    """Add an entry to the plan; whether it had room."""
    joined = bool(made.ranges) and made.ranges[-1][1] == seq - 1
    if made.count >= MOST or (not joined and len(made.ranges) >= MOST_RANGES):
        made.more = True
        return False
    if joined:
        made.ranges[-1] = made.ranges[-1][0], seq
    else:
        made.ranges.append((seq, seq))
    made.kinds[kind] += 1
    return True


def cosigned(home: Path) -> tuple[int, int]:
    """How many entries another home has cosigned at most, and when, by its clock, one last did; 0, 0: nobody has."""
    sizes, times = [0], [0]
    for voucher, note in holding_cosignatures(home, load_roots(home / "identity" / "root.pem")):
        times.append(check_cosignature(note, voucher.witness_key))
        sizes.append(read_checkpoint(note).size)
    return max(sizes), max(times)


def retired_by(reader: LogReader) -> list[Retired]:
    """What the log says of deletions, from the first. Raises EvidenceError."""
    return [read_retired(seq, read_entry(data)) for seq, data in reader.of_kind(RETENTION)]


def retired_in(entries: Iterable[tuple[int, Mapping[str, Any]]]) -> list[Retired]:
    """What those of `entries` say, by their numbers, that tell of a deletion. Raises EvidenceError."""
    return [read_retired(seq, values) for seq, values in entries if values.get("kind") == RETENTION]


def _day(moment: int) -> str:
    return day(moment, "%F")
