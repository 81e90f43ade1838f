"""A home's log: `audit/log.db`, a SQLite database to which entries are added, and from which what they say is deleted
by rule (`retention.py`) with an entry that tells so: hashes and heads stay.

Each entry is on disk, and the new head signed, before `record` returns. Every head is kept: so the first entry that
somebody has changed can be named. Several processes of the home may append; an institution's gateway only reads.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.database import compact, reading, writing
from sovfed.federation.errors import EvidenceError, ServiceError, SovfedError
from sovfed.federation.evidence import merkle
from sovfed.federation.evidence.ahead import FILE as AHEAD
from sovfed.federation.evidence.ahead import Standing, stands_ahead
from sovfed.federation.evidence.entries import BEFORE, DAMAGE, NAME, RETENTION, canonical, entry, read_entry
from sovfed.federation.evidence.keys import AGENCY, FOLDERS, LOG_KEY, VOUCHER, establish, load_key, read_voucher
from sovfed.federation.evidence.notes import Checkpoint, sign
from sovfed.federation.evidence.standing import CHANGED, Mend, due
from sovfed.federation.files import read_private, stamp

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FILE: Final = "audit/log.db"
SIGNED_BY: Final = ("identity/cert.pem", VOUCHER, LOG_KEY, *FOLDERS)
BATCH: Final = 1_000  # rows that are read at once; who appends waits for whoever reads
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entries (seq INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (level INTEGER, position INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, position))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heads (size INTEGER PRIMARY KEY, note BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS named (name TEXT PRIMARY KEY, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS ahead (file TEXT PRIMARY KEY, entered INTEGER NOT NULL);
"""


def record(home: Path, kind: str, /, **fields: Any) -> int:
    """Append one entry to the home's log; its number. Before the home has a certificate there is no log: -1.

    One of a run, by its `name`, has the number of the entry of that run before it: who shows a run's entries to others
    can leave none out between two of them.
    """
    signer = _held_signer(home)
    if signer is None:
        return -1
    with writing(home / FILE, _SCHEMA) as db:
        _enter_ahead(db, signer, home)
        return _append(db, signer, kind, int(time.time()), fields)


def enter_ahead(
    home: Path, known: Standing | None = None, *, changed: bool = False, begins: str = "", mend: Mend = Mend.NOTHING
) -> bool:
    """Have all that stands ahead of the log in it; False before the home has a certificate.

    `known`, `changed` and `begins` as `Enter` has them. What cannot be entered, and `mend` says may be, is set aside
    with an entry that tells so; of anything else EvidenceError is raised, and nothing is entered.
    """
    signer = _held_signer(home)
    if signer is None:
        return False
    with writing(home / FILE, _SCHEMA) as db:
        current = _enter_ahead(db, signer, home, known, mend)
        if changed:
            _append(db, signer, DAMAGE, int(time.time()), {"file": AHEAD, "why": CHANGED})
        if begins:
            db.execute("DELETE FROM ahead WHERE file != ?", (current,))
            db.execute("INSERT OR REPLACE INTO ahead VALUES (?, 0)", (begins,))
    return True


def ahead_key(home: Path) -> bytes:
    """The key by which lines ahead of the log are authenticated, derived from the log's; b"" before there is one."""
    signer = _held_signer(home)
    return b"" if signer is None else _ahead_key(signer)


def _ahead_key(signer: tuple[str, Ed25519PrivateKey]) -> bytes:
    return hashlib.sha256(b"sovfed ahead of the log\0" + signer[1].private_bytes_raw()).digest()


def _enter_ahead(
    db: sqlite3.Connection,
    signer: tuple[str, Ed25519PrivateKey],
    home: Path,
    known: Standing | None = None,
    mend: Mend = Mend.NOTHING,
) -> str:
    """Enter what stands ahead, within a transaction; the name of the file that has it, "" where there is none."""
    entered = {str(file): int(size) for file, size in db.execute("SELECT file, entered FROM ahead")}
    new = due(home, _ahead_key(signer), entered, known)
    if new.why and new.mend > mend:
        role = "server" if signer[0].startswith(AGENCY) else "client"
        raise EvidenceError(
            f"{home / AHEAD}: {new.why}; nothing is answered before it is set aside, of which an entry tells: "
            f"`sovfed {role} log mend`"
        )
    for kind, at, fields in new.entries:
        _append(db, signer, kind, at, fields)
    if new.why:
        _append(db, signer, DAMAGE, int(time.time()), new.told())
    if new.entries or new.why:
        db.execute("DELETE FROM ahead")
        db.execute("INSERT INTO ahead VALUES (?, ?)", (new.name, new.end))
    return new.name


def delete_contents(home: Path, ranges: Sequence[tuple[int, int]], **fields: Any) -> int:
    """Delete what the entries in `ranges` (first and last number) say, and append the entry that tells of it: at once.

    The number of that entry. Raises EvidenceError where one is not what was written, or is gone already, ServiceError
    without a log: then nothing is deleted. `shrink` gives the disk back what it took.
    """
    signer = _held_signer(home)
    if signer is None or not has_log(home):
        raise ServiceError(f"{home}: no log, so nothing to delete")
    with writing(home / FILE, _SCHEMA) as db:
        db.execute("PRAGMA secure_delete = ON")
        for first, last in ranges:
            _require_unchanged(db, first, last)
            db.execute("DELETE FROM entries WHERE seq BETWEEN ? AND ?", (first, last))
            for (name,) in db.execute("SELECT name FROM named WHERE seq BETWEEN ? AND ?", (first, last)).fetchall():
                db.execute("UPDATE named SET name = ? WHERE name = ?", (_concealed(name), name))
        told = {**fields, "ranges": [list(pair) for pair in ranges]}
        seq = _append(db, signer, RETENTION, int(time.time()), told)
        db.execute("PRAGMA user_version = 1")  # until `shrink`
    return seq


def shrink(home: Path) -> bool:
    """Write the log anew, as small as it is now, if anything was deleted since; whether it was. Raises ServiceError."""
    with reading(home / FILE, "log") as db:
        if db.execute("PRAGMA user_version").fetchone() == (0,):
            return False
    compact(home / FILE)
    with writing(home / FILE, _SCHEMA) as db:
        db.execute("PRAGMA user_version = 0")
    return True


def _append(
    db: sqlite3.Connection, signer: tuple[str, Ed25519PrivateKey], kind: str, at: int, fields: dict[str, Any]
) -> int:
    """Add an entry, its hashes and the new head, within a transaction; the entry's number."""
    origin, key = signer
    (size,) = db.execute("SELECT coalesce(max(seq) + 1, 0) FROM entries").fetchone()
    data, nodes = entry(kind, at, _linked(db, fields, size)), _nodes(db)
    db.execute("INSERT INTO entries VALUES (?, ?)", (size, data))
    db.executemany("INSERT INTO nodes VALUES (?, ?, ?)", merkle.completed(size, merkle.leaf_hash(data), nodes))
    head = Checkpoint(origin, size + 1, merkle.root_hash(size + 1, nodes))
    db.execute("INSERT INTO heads VALUES (?, ?)", (size + 1, sign(head, key)))
    return int(size)


def _require_unchanged(db: sqlite3.Connection, first: int, last: int) -> None:
    """Raise EvidenceError unless all entries from `first` to `last` are there with the hash that was stored of them."""
    query = (
        "SELECT seq, data, hash FROM entries JOIN nodes ON level = 0 AND position = seq "
        "WHERE seq BETWEEN ? AND ? ORDER BY seq"
    )
    expected = first
    for seq, data, value in db.execute(query, (first, last)):
        if seq != expected or merkle.leaf_hash(bytes(data)) != bytes(value):
            break
        expected += 1
    if expected != last + 1:
        raise EvidenceError(f"entry {expected}: was changed, or is gone already; nothing was deleted: `log verify`")


def _concealed(name: str) -> bytes:
    """What stands for the name of a run whose entries are gone, so that a later one of it is still linked to them.

    Bytes, which are no run's name, whatever an agency calls its runs.
    """
    return hashlib.sha256(name.encode()).digest()


def _held_signer(home: Path) -> tuple[str, Ed25519PrivateKey] | None:
    """`_signer`, read again only where a file or folder that matters is another."""
    stamps = tuple(stamp(f"{home}/{name}") for name in SIGNED_BY)
    return _signer(str(home)) if None in stamps else _same_signer(str(home), stamps)


@lru_cache(maxsize=8)
def _same_signer(home: str, _: object) -> tuple[str, Ed25519PrivateKey] | None:
    """`_signer` of files with these stamps: reading and checking them costs more than an entry."""
    return _signer(home)


def _signer(home: str) -> tuple[str, Ed25519PrivateKey] | None:
    """Origin and key of the home's log, made if there is none; None before there is a certificate."""
    voucher = establish(Path(home))
    return None if voucher is None else (voucher.origin, load_key(Path(home) / LOG_KEY))


def _linked(db: sqlite3.Connection, fields: dict[str, Any], seq: int) -> dict[str, Any]:
    """`fields` of entry `seq`, with the place of the entry of the same name before it, -1 if there is none."""
    name = fields.get(NAME)
    if not isinstance(name, str):
        return fields
    query = "SELECT seq FROM named WHERE name IN (?, ?) ORDER BY seq DESC LIMIT 1"
    row = db.execute(query, (name, _concealed(name))).fetchone()
    before = int(row[0]) if row else _newest_named(db, name)
    db.execute("INSERT OR REPLACE INTO named VALUES (?, ?)", (name, seq))
    return {**fields, BEFORE: before}


def _newest_named(db: sqlite3.Connection, name: str) -> int:
    """The last entry of that name in a log that was written before entries named one another; -1 if none."""
    query = "SELECT seq, data FROM entries WHERE instr(data, ?) ORDER BY seq DESC"
    rows = db.execute(query, (canonical({NAME: name})[1:-1],))
    return next((int(seq) for seq, data in rows if read_entry(bytes(data)).get(NAME) == name), -1)


def record_change(home: Path, kind: str, /, **fields: Any) -> bool:
    """`record`, unless the newest entry of that kind says just the same; whether it did not."""
    if has_log(home):
        newest = next((values for values in LogReader(home).newest() if values["kind"] == kind), {})
        if newest and {**fields, "kind": kind, "at": newest["at"], "v": newest["v"]} == newest:
            return False
    return record(home, kind, **fields) >= 0


class LogReader:
    """What the log of `home` says, for proofs. A home without a log has none to read: `ServiceError`."""

    def __init__(self, home: Path, *, writable: bool = True) -> None:
        """Not `writable` is for who may only read: what stands ahead of the log is in it a moment later."""
        self._path = home / FILE
        if writable and stands_ahead(home):
            with suppress(SovfedError, OSError):  # as one who may not write it either
                enter_ahead(home)
        self.voucher = read_voucher(read_private(home / VOUCHER))

    def head(self, size: int | None = None) -> bytes:
        """The signed note of the newest head, or of that of `size` entries. Raises EvidenceError if there is none."""
        which = ("WHERE size = ?", (size,)) if size is not None else ("ORDER BY size DESC LIMIT 1", ())
        with self._reading() as db:
            row = db.execute(f"SELECT note FROM heads {which[0]}", which[1]).fetchone()  # noqa: S608 - ours
        if row is None:
            raise EvidenceError(f"{self._path}: no head" + ("" if size is None else f" of {size} entries"))
        return bytes(row[0])

    def extent(self) -> int:
        """How many entries there are by whichever of entries, hashes and heads has most, all at one moment."""
        query = (
            "SELECT max(coalesce((SELECT max(seq) + 1 FROM entries), 0), coalesce((SELECT max(size) FROM heads), 0), "
            "coalesce((SELECT max((position + 1) << level) FROM nodes), 0))"
        )
        return int(self._rows(query)[0][0])

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of each entry from `start` to before `end`."""
        query = "SELECT seq, data FROM entries WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT ?"
        yield from self._numbered(query, start, (1 << 62) if end is None else end)

    def of_kind(self, kind: str) -> list[tuple[int, bytes]]:
        """Number and bytes of the entries of that kind, from the first."""
        query = "SELECT seq, data FROM entries WHERE instr(data, ?) ORDER BY seq"
        rows = self._rows(query, canonical({"kind": kind})[1:-1])
        return [(int(seq), _bytes(data)) for seq, data in rows]

    def newest(self) -> Iterator[dict[str, Any]]:
        """What the entries say, the newest first."""
        query, before = "SELECT seq, data FROM entries WHERE seq < ? ORDER BY seq DESC LIMIT ?", 1 << 62
        while rows := self._rows(query, before, BATCH):
            yield from (read_entry(_bytes(data)) for _, data in rows)
            before = int(rows[-1][0])

    def inclusion(self, position: int, size: int) -> list[bytes]:
        """The path of the entry at `position` to the root of the first `size`."""
        with self._reading() as db:
            return merkle.prove_inclusion(position, size, _nodes(db))

    def consistency(self, old: int, size: int) -> list[bytes]:
        """The proof that the first `old` entries are the beginning of the first `size`."""
        with self._reading() as db:
            return merkle.prove_consistency(old, size, _nodes(db))

    def heads(self, end: int) -> Iterator[tuple[int, bytes]]:
        """Size and note of each head of at most `end` entries, from the first."""
        query = "SELECT size, note FROM heads WHERE size >= ? AND size < ? ORDER BY size LIMIT ?"
        yield from self._numbered(query, 0, end + 1)

    def nodes(self, end: int) -> Iterator[tuple[int, int, bytes]]:
        """Each stored hash of the first `end` entries, with its level and position."""
        rows = self._rows("SELECT level, position, hash FROM nodes WHERE (position + 1) << level <= ?", end)
        yield from ((int(level), int(position), bytes(value)) for level, position, value in rows)

    def _numbered(self, query: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The rows of `query`, a batch at a time: between two of them whoever appends is let in."""
        while rows := self._rows(query, start, end, BATCH):
            yield from ((int(number), _bytes(data)) for number, data in rows)
            start = int(rows[-1][0]) + 1

    def _rows(self, query: str, *values: int | bytes) -> list[Any]:
        with self._reading() as db:
            return db.execute(query, values).fetchall()

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        return reading(self._path, "log")


def _bytes(value: object) -> bytes:
    """A column's value, of whatever type somebody has put there."""
    return value if isinstance(value, bytes) else str(value).encode()


def has_log(home: Path) -> bool:
    """Whether anything was logged in `home` yet."""
    return (home / FILE).exists()


def _nodes(db: sqlite3.Connection) -> Callable[[int, int], bytes]:
    def node(level: int, position: int) -> bytes:
        row = db.execute("SELECT hash FROM nodes WHERE level = ? AND position = ?", (level, position)).fetchone()
        if row is None:
            raise EvidenceError(f"log: the hash of level {level} at {position} is missing")
        return bytes(row[0])

    return node
