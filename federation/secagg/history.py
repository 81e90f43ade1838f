"""What an institution remembers of sums: which contexts it masked under, and which sums it helped to reveal.

Entries, and their fold: what the rules of `client.py` and `opened.py` ask. `journal.py` keeps them on disk.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Self, TypeAlias, TypeVar

from sovfed.federation.secagg import wire
from sovfed.federation.secagg.keys import digest
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.shares import MAX_HOLDERS

NAME_BYTES: Final = 8
MAX_NAME: Final = 64  # characters of an institution's name, or of a run's
NEAR_KEPT: Final = 1_000  # sums that could be differenced, the newest, for the institution's own eyes


@lru_cache(maxsize=4096)
def name_tag(name: str) -> bytes:
    """8 bytes that stand for an institution in the journal, across rosters."""
    return digest("name", name.encode())[:NAME_BYTES]


@dataclass(frozen=True, slots=True)
class Joined(wire.Wire):
    """This institution finished the setup of `epoch`, with `names`; `title` is what the run is called."""

    KIND, LIMIT = 128, 256 + (MAX_HOLDERS + 1) * (4 * MAX_NAME + 2)
    run: bytes
    epoch: int
    roster: bytes
    title: str
    names: tuple[str, ...]

    def body(self) -> bytes:
        head = self.run + wire.number(self.epoch, 4) + self.roster + _text(self.title)
        return head + bytes((len(self.names),)) + b"".join(_text(name) for name in self.names)

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        run, epoch, roster = reader.take(wire.RUN_BYTES), reader.number(4), reader.take(wire.HASH)
        title = _read_text(reader)
        return cls(run, epoch, roster, title, tuple(_read_text(reader) for _ in range(reader.number(1))))


@dataclass(frozen=True, slots=True)
class Spent(wire.Wire):
    """This institution masked an update in (round, attempt) under `ctx`; nothing is ever masked under it again."""

    KIND, LIMIT = 129, 512
    run: bytes
    roster: bytes
    round: int
    attempt: int
    purpose: int
    model: bytes
    subject: bytes
    ctx: bytes
    payload: bytes

    def body(self) -> bytes:
        sum_id = wire.number(self.round, 4) + wire.number(self.attempt, 2) + bytes((self.purpose,))
        return self.run + self.roster + sum_id + self.model + self.subject + self.ctx + self.payload

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        run, roster = reader.take(wire.RUN_BYTES), reader.take(wire.HASH)
        number, attempt, purpose = reader.number(4), reader.number(2), reader.number(1)
        model, subject, ctx, payload = (reader.take(wire.HASH) for _ in range(4))
        return cls(run, roster, number, attempt, purpose, model, subject, ctx, payload)


@dataclass(frozen=True, slots=True)
class Revealed(wire.Wire):
    """This institution gave out its shares for `chosen` = H(ctx, U1), the survivors being `names` (tags).

    `least` is the fewest institutions by which another sum may differ, as it was then.
    """

    KIND, LIMIT = 130, 4096
    run: bytes
    round: int
    chosen: bytes
    purpose: int
    model: bytes
    subject: bytes
    least: int
    names: tuple[bytes, ...]

    def body(self) -> bytes:
        head = self.run + wire.number(self.round, 4) + self.chosen + bytes((self.purpose,)) + self.model
        return head + self.subject + bytes((self.least, len(self.names))) + b"".join(self.names)

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        run, number, chosen = reader.take(wire.RUN_BYTES), reader.number(4), reader.take(wire.HASH)
        purpose, model, subject = reader.number(1), reader.take(wire.HASH), reader.take(wire.HASH)
        least, count = reader.number(1), reader.number(1)
        names = tuple(reader.take(NAME_BYTES) for _ in range(count))
        return cls(run, number, chosen, purpose, model, subject, least, names)


@dataclass(frozen=True, slots=True)
class Pinned(wire.Wire):
    """The terms of the first training sum without privacy, which was about `subject`; see `opened.check_bounds`."""

    KIND, LIMIT = 131, 256
    subject: bytes
    clip: float
    max_weight: int

    def body(self) -> bytes:
        return self.subject + struct.pack(">d", self.clip) + wire.number(self.max_weight, 8)

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        return cls(reader.take(wire.HASH), reader.real(), reader.number(8))


@dataclass(frozen=True, slots=True)
class Dated(wire.Wire):
    """The day (UTC, since 1970) on which the first table of `run` was made: how long it judges others is bounded."""

    KIND, LIMIT = 132, 64
    run: bytes
    day: int

    def body(self) -> bytes:
        return self.run + wire.number(self.day, 4)

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        return cls(reader.take(wire.RUN_BYTES), reader.number(4))


def _text(text: str) -> bytes:
    return wire.variable(text[:MAX_NAME].encode())


def _read_text(reader: wire.Reader) -> str:
    data = reader.variable(4 * MAX_NAME)
    text = data.decode(errors="replace")
    reader.require(_text(text)[2:] == data, "not a name")
    return text


KeptT = TypeVar("KeptT", bound=Hashable)
Entry: TypeAlias = Joined | Spent | Revealed | Pinned | Dated
KINDS: Final[dict[int, type[Entry]]] = {cls.KIND: cls for cls in (Joined, Spent, Revealed, Pinned, Dated)}


@dataclass
class History:
    """The entries, indexed for those rules; read there, changed by `add` alone.

    Institutions are known by their tags, a sum's key is (run, purpose, model). `cohorts` and `rosters_masked` hold
    what was done without privacy, `tables` and `rosters_counted` the newest run that made tables of these institutions;
    `near` the pairs of sums whose difference tells of few institutions.
    """

    epochs: dict[bytes, int] = field(default_factory=dict)
    titles: dict[bytes, str] = field(default_factory=dict)
    names: dict[bytes, str] = field(default_factory=dict)
    rosters: dict[bytes, frozenset[bytes]] = field(default_factory=dict)
    spent: dict[tuple[bytes, int], list[Spent]] = field(default_factory=dict)
    masked: dict[tuple[bytes, int, bytes], tuple[frozenset[bytes], ...]] = field(default_factory=dict)
    rosters_masked: set[frozenset[bytes]] = field(default_factory=set)
    revealed: dict[tuple[bytes, int], Revealed] = field(default_factory=dict)
    sums: dict[tuple[bytes, int, bytes], frozenset[bytes]] = field(default_factory=dict)
    cohorts: dict[frozenset[bytes], Revealed] = field(default_factory=dict)
    tables: dict[frozenset[bytes], Revealed] = field(default_factory=dict)
    rosters_counted: dict[frozenset[bytes], bytes] = field(default_factory=dict)
    days: dict[bytes, int] = field(default_factory=dict)
    near: deque[tuple[Revealed, Revealed]] = field(default_factory=lambda: deque(maxlen=NEAR_KEPT))
    last_round: dict[bytes, int] = field(default_factory=dict)
    pinned: Pinned | None = None
    _kept: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def add(self, entry: Entry) -> None:
        if isinstance(entry, Joined):
            self.epochs[entry.run], self.titles[entry.run] = entry.epoch, entry.title
            tags = {name_tag(name): name for name in entry.names}
            self.names.update(tags)
            self.rosters[entry.roster] = frozenset(tags)
        elif isinstance(entry, Spent):
            entry = replace(
                entry, run=self._same(entry.run), roster=self._same(entry.roster), subject=self._same(entry.subject)
            )
            self.spent.setdefault((entry.run, entry.round), []).append(entry)
            self.last_round[entry.run] = max(entry.round, self.last_round.get(entry.run, 0))
            roster = self.rosters.get(entry.roster, frozenset())
            key = (entry.run, entry.purpose, entry.model)
            self.masked[key] = tuple({*self.masked.get(key, ()), roster})
            if entry.purpose == Purpose.COUNT:
                self.rosters_counted[roster] = entry.run
            elif Purpose(entry.purpose).without_privacy:
                self.rosters_masked.add(roster)
        elif isinstance(entry, Pinned):
            self.pinned = self.pinned or entry
        elif isinstance(entry, Dated):
            self.days.setdefault(entry.run, entry.day)
        else:
            entry = replace(
                entry, run=self._same(entry.run), subject=self._same(entry.subject), names=self._same(entry.names)
            )
            self.revealed[entry.run, entry.round] = entry
            self.sums[entry.run, entry.purpose, entry.model] = self._same(frozenset(entry.names))
            if Purpose(entry.purpose).tells_apart:
                self._add_cohort(entry)

    def _same(self, value: KeptT) -> KeptT:
        """`value`, held once however many entries have it: rounds differ in little, and a run has many."""
        kept: KeptT = self._kept.setdefault(value, value)
        return kept

    def _add_cohort(self, entry: Revealed) -> None:
        names = frozenset(entry.names)
        for cohort, earlier in (*reversed(self.cohorts.items()), *reversed(self.tables.items())):
            if 0 < len(names ^ cohort) < entry.least:
                self.near.append((entry, earlier))
                break
        if entry.purpose == Purpose.COUNT:
            self.tables[names] = entry
        else:
            self.cohorts.setdefault(names, entry)

    def recent(self, run: bytes, today: int, days: int) -> bool:
        """Whether a table of `run` is less than `days` old; also where its day is not known, or is yet to come."""
        return self.days.get(run, today) > today - days

    def epoch(self, run: bytes) -> int | None:
        return self.epochs.get(run)

    def describe(self, entry: Revealed) -> str:
        """A sum in words: run, number and purpose."""
        title = self.titles.get(entry.run) or entry.run.hex()
        title = "".join(letter if letter.isprintable() else "?" for letter in title)
        return f"run {title}, sum {entry.round} ({Purpose(entry.purpose).name.lower()})"

    def describe_near(self, entry: Revealed, earlier: Revealed) -> str:
        """A pair of `near` in words, for the institution's own people."""
        differing = self.list_names(frozenset(entry.names) ^ frozenset(earlier.names))
        return f"{self.describe(entry)} can be differenced with {self.describe(earlier)}; they differ by {differing}"

    def list_names(self, tags: Iterable[bytes]) -> str:
        """The institutions behind `tags`."""
        return ", ".join(sorted(self.names.get(tag, tag.hex()) for tag in tags))
