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
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeAlias

from sovfed.federation.errors import ServiceError
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.keys import digest

_HEAD: Final = b"sovfed/secagg/journal/1\n"
_CHAIN: Final = 16  # bytes of the running hash that end a record
_PREFIX: Final = 8  # its length, and 4 bytes that show the length to be right
NAME_BYTES: Final = 8


def name_tag(name: str) -> bytes:
    """8 bytes that stand for an institution in the journal, across rosters."""
    return digest("name", name.encode())[:NAME_BYTES]


@dataclass(frozen=True)
class Joined(wire.Wire):
    """This institution finished the setup of `epoch`."""

    KIND, LIMIT = 128, 128
    run: bytes
    epoch: int
    roster: bytes

    def body(self) -> bytes:
        return self.run + wire.number(self.epoch, 4) + self.roster

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        return cls(reader.take(wire.RUN_BYTES), reader.number(4), reader.take(wire.HASH))


@dataclass(frozen=True)
class Spent(wire.Wire):
    """This institution masked an update in (round, attempt) under `ctx`; nothing is ever masked under it again."""

    KIND, LIMIT = 129, 256
    run: bytes
    roster: bytes
    round: int
    attempt: int
    ctx: bytes
    payload: bytes

    def body(self) -> bytes:
        return (
            self.run + self.roster + wire.number(self.round, 4) + wire.number(self.attempt, 2) + self.ctx + self.payload
        )

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        run, roster = reader.take(wire.RUN_BYTES), reader.take(wire.HASH)
        return cls(run, roster, reader.number(4), reader.number(2), reader.take(wire.HASH), reader.take(wire.HASH))


@dataclass(frozen=True)
class Revealed(wire.Wire):
    """This institution gave out its shares for `chosen` = H(ctx, U1), the survivors being `names` (tags)."""

    KIND, LIMIT = 130, 4096
    run: bytes
    round: int
    chosen: bytes
    purpose: int
    model: bytes
    names: tuple[bytes, ...]

    def body(self) -> bytes:
        head = self.run + wire.number(self.round, 4) + self.chosen + bytes((self.purpose,)) + self.model
        return head + bytes((len(self.names),)) + b"".join(self.names)

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        run, number, chosen = reader.take(wire.RUN_BYTES), reader.number(4), reader.take(wire.HASH)
        purpose, model = reader.number(1), reader.take(wire.HASH)
        return cls(run, number, chosen, purpose, model, tuple(reader.take(NAME_BYTES) for _ in range(reader.number(1))))


Entry: TypeAlias = Joined | Spent | Revealed
_KINDS: Final[dict[int, type[Entry]]] = {cls.KIND: cls for cls in (Joined, Spent, Revealed)}


@dataclass
class History:
    """The entries, indexed for the rules of `client.py`; read there, changed by `add` alone."""

    epochs: dict[bytes, int] = field(default_factory=dict)
    spent: dict[tuple[bytes, int], list[Spent]] = field(default_factory=dict)
    revealed: dict[tuple[bytes, int], Revealed] = field(default_factory=dict)
    sums: dict[tuple[bytes, int, bytes], list[frozenset[bytes]]] = field(default_factory=dict)
    last_round: dict[bytes, int] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        if isinstance(entry, Joined):
            self.epochs[entry.run] = entry.epoch
        elif isinstance(entry, Spent):
            self.spent.setdefault((entry.run, entry.round), []).append(entry)
            self.last_round[entry.run] = max(entry.round, self.last_round.get(entry.run, 0))
        else:
            self.revealed[entry.run, entry.round] = entry
            known = self.sums.setdefault((entry.run, entry.purpose, entry.model), [])
            if frozenset(entry.names) not in known:
                known.append(frozenset(entry.names))

    def epoch(self, run: bytes) -> int | None:
        return self.epochs.get(run)


class Journal:
    """The file behind a `History`, locked against a second trainer of the same home."""

    def __init__(self, path: Path) -> None:
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
        self._chain = hashlib.sha256(_HEAD).digest()
        try:
            self._replay(path)
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
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, folder)
            os.fsync(folder)

    def commit(self, entries: Iterable[Entry]) -> None:
        """Put `entries` on disk; only then may the reply that came with them be sent."""
        for entry in entries:
            record = self._record(entry.encode())
            end = os.lseek(self._file, 0, os.SEEK_END)
            if os.write(self._file, record) != len(record):
                os.ftruncate(self._file, end)
                raise ServiceError("journal: the disk is full; nothing was sent")
            os.fsync(self._file)
            self._chain = record[-_CHAIN:]
            self.history.add(entry)

    def close(self) -> None:
        os.close(self._file)

    def _prefix(self, length: int) -> bytes:
        size = wire.number(length, 4)
        return size + hashlib.sha256(self._chain + size).digest()[:4]

    def _record(self, data: bytes) -> bytes:
        body = self._prefix(len(data)) + data
        return body + hashlib.sha256(self._chain + body).digest()[:_CHAIN]

    def _replay(self, path: Path) -> None:
        with os.fdopen(os.dup(self._file), "rb") as file:
            content = file.read()
        if not content.startswith(_HEAD):
            raise ServiceError(f"{path}: not a journal of this version")
        at = len(_HEAD)
        while at < len(content):
            prefix = content[at : at + _PREFIX]
            length = int.from_bytes(prefix[:4], "big")
            record = content[at : at + _PREFIX + length + _CHAIN]
            data = record[_PREFIX:-_CHAIN]
            if self._prefix(length) == prefix and self._record(data) == record and len(data) == length:
                self._chain = record[-_CHAIN:]
                self.history.add(_KINDS[data[5]].decode(data))
                at += len(record)
            elif len(prefix) < _PREFIX or (self._prefix(length) == prefix and at + len(record) == len(content)):
                os.ftruncate(self._file, at)  # torn: its reply never left
                os.fsync(self._file)
                break
            else:
                raise ServiceError(f"{path}: damaged at byte {at}; this institution must enrol anew")
