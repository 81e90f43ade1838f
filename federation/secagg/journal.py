"""What an institution must never forget: which contexts it masked under, and which sums it helped to reveal.

`History` is the fold of the entries; `Journal` is the file. An entry is on disk (fsync) before the reply that it
allows leaves, so after a crash either no reply went out or the entry is there. Entries are chained by hash: a torn last
entry belonged to a reply that was never sent and is cut off, anything else that does not fit is refused. A journal that
was rolled back cannot be told from a true one without hardware; a missing one is never made anew but by enrolment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, TypeVar

from sovfed.federation.errors import ServiceError
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.keys import digest
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.shares import MAX_HOLDERS

_HEAD: Final = b"sovfed/secagg/journal/2\n"
_CHAIN: Final = 16  # bytes of the running hash that end a record
_PREFIX: Final = 8  # its length, and 4 bytes that show the length to be right
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
_KINDS: Final[dict[int, type[Entry]]] = {cls.KIND: cls for cls in (Joined, Spent, Revealed, Pinned, Dated)}


@dataclass
class History:
    """The entries, indexed for the rules of `client.py` and `opened.py`; read there, changed by `add` alone.

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


class Journal:
    """The file behind a `History`, locked against a second trainer of the same home."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise ServiceError(f"{path}: no journal; this institution must enrol anew") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise ServiceError(f"{path}: in use by another trainer") from error
        self.history = History()
        self._sound = True
        try:
            content = _content(self._file)
            self._chain, intact_bytes = _replay(content, self.history, path)
            if intact_bytes < len(content):
                os.ftruncate(self._file, intact_bytes)  # torn: its reply never left
                os.fsync(self._file)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(path: Path) -> None:
        """Make the empty journal of a newly enrolled institution; raises ServiceError if there is one."""
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise ServiceError(f"{path}: a journal exists; removing it allows secrets to be asked for twice") from error
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, file)
            os.write(file, _HEAD)
            os.fsync(file)
        _sync_folder(path)

    def commit(self, entries: Iterable[Entry]) -> None:
        """Put `entries` on disk; only then may the reply that came with them be sent.

        Raises ServiceError if the disk fails; what was half written is taken back, and if that fails too nothing more
        is written until the trainer starts again.
        """
        for entry in entries:
            if not self._sound:
                raise ServiceError("journal: an earlier write failed; restart the trainer")
            record = _record(self._chain, entry.encode())
            end = os.lseek(self._file, 0, os.SEEK_END)
            self._sound = False
            try:
                complete = os.write(self._file, record) == len(record)
                os.fsync(self._file)
            except OSError as error:
                self._take_back(end)
                raise ServiceError(f"journal: cannot be written ({error.strerror}); nothing was sent") from error
            if not complete:
                self._take_back(end)
                raise ServiceError("journal: the disk is full; nothing was sent")
            self._sound = True
            self._chain = record[-_CHAIN:]
            self.history.add(entry)

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._file).st_size

    def entries(self) -> list[Entry]:
        """All that the file holds, in order."""
        listed = _Listed()
        _replay(_content(self._file), listed, self._path)
        return listed.entries

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Put `entries` in the place of all there are, in one step: a crash leaves the old file or the new one.

        Raises ServiceError if the disk fails; the old one then goes on.
        """
        chain, content, history = hashlib.sha256(_HEAD).digest(), bytearray(_HEAD), History()
        for entry in entries:
            record = _record(chain, entry.encode())
            chain = record[-_CHAIN:]
            content += record
            history.add(entry)
        draft = self._path.with_suffix(".new")
        try:
            file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody takes it between its birth and our next write
                with os.fdopen(os.dup(file), "wb") as whole:
                    whole.write(content)
                os.fsync(file)
                draft.replace(self._path)
            except BaseException:
                os.close(file)
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ServiceError(f"journal: cannot be rewritten ({error.strerror}); it goes on as it is") from error
        os.close(self._file)
        self._file, self._chain, self.history, self._sound = file, chain, history, True
        _sync_folder(self._path)

    def close(self) -> None:
        os.close(self._file)

    def _take_back(self, end: int) -> None:
        """Cut the file to `end`, its length before a write that failed; the next record then fits the chain again."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, end)
            os.fsync(self._file)
            self._sound = True


def read_history(path: Path) -> History:
    """The history in the journal at `path`, for reading only: its trainer may be running. Raises ServiceError."""
    history = History()
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ServiceError(f"{path}: cannot be read ({error.strerror})") from error
    with contextlib.closing(os.fdopen(file, "rb")) as opened:
        _replay(opened.read(), history, path)
    return history


@dataclass
class _Listed:
    """Entries as they are, where `History` indexes them."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)


def _content(file: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as opened:
        opened.seek(0)
        return opened.read()


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _prefix(chain: bytes, length: int) -> bytes:
    size = wire.number(length, 4)
    return size + hashlib.sha256(chain + size).digest()[:4]


def _record(chain: bytes, data: bytes) -> bytes:
    body = _prefix(chain, len(data)) + data
    return body + hashlib.sha256(chain + body).digest()[:_CHAIN]


def _replay(content: bytes, history: History | _Listed, path: Path) -> tuple[bytes, int]:
    """Add the entries of `content` to `history`; the chain after the last whole one, and where it ends."""
    if not content.startswith(_HEAD):
        older = content.startswith(_HEAD.rpartition(b"/")[0])
        fix = "; an older sovfed wrote it, and this institution must enrol anew" if older else ""
        raise ServiceError(f"{path}: not a journal of this version{fix}")
    chain, at = hashlib.sha256(_HEAD).digest(), len(_HEAD)
    while at < len(content):
        prefix = content[at : at + _PREFIX]
        length = int.from_bytes(prefix[:4], "big")
        record = content[at : at + _PREFIX + length + _CHAIN]
        data = record[_PREFIX:-_CHAIN]
        if _prefix(chain, length) == prefix and _record(chain, data) == record and len(data) == length:
            chain = record[-_CHAIN:]
            history.add(_KINDS[data[5]].decode(data))
            at += len(record)
        elif len(prefix) < _PREFIX or (_prefix(chain, length) == prefix and at + len(record) == len(content)):
            break
        else:
            raise ServiceError(f"{path}: damaged at byte {at}; this institution must enrol anew")
    return chain, at
