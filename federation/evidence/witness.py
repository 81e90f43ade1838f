"""What this home has seen of the logs of others, and which of them have cosigned its own: `witness/heads.db`.

A log is cosigned only where it goes on from what was seen before. One that does not was rolled back, written anew, or
is shown to others in another form: it is not cosigned again before the operator has said so (`trusting`).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.database import reading, writing
from sovfed.federation.errors import EvidenceError, IdentityError
from sovfed.federation.evidence import merkle
from sovfed.federation.evidence.keys import (
    AGENCY,
    VOUCHER,
    WITNESS_FOLDER,
    WITNESS_KEY,
    Voucher,
    load_key,
    read_voucher,
)
from sovfed.federation.evidence.notes import Checkpoint, check_cosignature, check_note, cosign, read_checkpoint, signers
from sovfed.federation.files import private_directory, read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from cryptography import x509

FILE: Final = "witness/heads.db"
SPLIT: Final = "witness/split.json"
MAX_PROOF: Final = 64
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS seen (origin TEXT PRIMARY KEY, keys BLOB, note BLOB, at INTEGER);
CREATE TABLE IF NOT EXISTS others (origin TEXT PRIMARY KEY, keys BLOB, note BLOB, at INTEGER);
CREATE TABLE IF NOT EXISTS own (origin TEXT PRIMARY KEY, keys BLOB, note BLOB, at INTEGER);
"""


class SplitError(EvidenceError):
    """A log does not go on from what was seen of it."""


@dataclass(frozen=True)
class Seen:
    """The newest head that this home has seen of a log, its note, and when (Unix time)."""

    voucher: Voucher
    note: bytes
    at: int

    @property
    def head(self) -> Checkpoint:
        """What the note says."""
        return read_checkpoint(self.note)


def seen(home: Path, origin: str) -> Seen | None:
    """What this home has seen of the log `origin`."""
    with _database(home) as db:
        row = db.execute("SELECT keys, note, at FROM seen WHERE origin = ?", (origin,)).fetchone()
    return None if row is None else Seen(read_voucher(bytes(row[0])), bytes(row[1]), int(row[2]))


def all_seen(home: Path) -> list[Seen]:
    """All logs of which this home has seen a head, by origin."""
    with _database(home) as db:
        rows = db.execute("SELECT keys, note, at FROM seen ORDER BY origin").fetchall()
    return [Seen(read_voucher(bytes(keys)), bytes(note), int(at)) for keys, note, at in rows]


def watch(home: Path, voucher: Voucher, note: bytes, proof: Sequence[bytes]) -> bytes:
    """`note` with this home's cosignature, once the log goes on from what was seen of it; that is kept as seen.

    `voucher` must have been checked. Raises SplitError if the log does not, and that is written down; EvidenceError if
    the note does not hold by itself.
    """
    head = check_note(note, voucher.log_key)
    if len(proof) > MAX_PROOF:
        raise EvidenceError(f"log {head.origin}: a proof of {len(proof)} hashes, at most {MAX_PROOF} are read")
    try:
        with _database(home) as db:
            row = db.execute("SELECT keys, note FROM seen WHERE origin = ?", (head.origin,)).fetchone()
            if head.origin in problems(home):
                raise EvidenceError(f"log {head.origin}: not cosigned before {trusting(head.origin)}")
            if row is not None:
                _require_goes_on(read_voucher(bytes(row[0])), read_checkpoint(bytes(row[1])), voucher, head, proof)
            if row is None or bytes(row[1]) != note:
                values = (head.origin, voucher.to_bytes(), note, int(time.time()))
                db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", values)
    except SplitError as error:
        note_split(home, head.origin, str(error), note)
        raise
    name = read_voucher(read_private(home / VOUCHER)).witness_key.name  # not the certificate's of today
    return note + cosign(head, name, load_key(home / WITNESS_KEY), int(time.time()))


def keep_cosignature(home: Path, voucher: Voucher, own: Voucher, note: bytes) -> None:
    """Keep `note`, a head of this home's own log that the home of `voucher` has cosigned. Raises EvidenceError."""
    head = check_note(note, own.log_key)
    check_cosignature(note, voucher.witness_key)
    if len(signers(note)) != 2:
        raise EvidenceError(f"log {head.origin}: a cosigned head with more lines than two")
    _keep(home, "own", [(voucher, note)])


def cosignatures(home: Path) -> list[tuple[Voucher, bytes]]:
    """The newest head of this home's own log that each other home has cosigned, the newest first."""
    return _kept(home, "own")


def holding_cosignatures(home: Path, roots: Sequence[x509.Certificate]) -> list[tuple[Voucher, bytes]]:
    """Those of `cosignatures` whose keys the authority still vouches for: who left before its new root counts for
    nothing, and is in nobody's way.
    """
    held = []
    for voucher, note in cosignatures(home):
        with contextlib.suppress(IdentityError):
            voucher.check(roots)
            held.append((voucher, note))
    return held


def keep_others(home: Path, cosigned: Sequence[tuple[Voucher, bytes]]) -> None:
    """Keep heads of the agency's log that other institutions have cosigned, and that agree with what was seen here."""
    if cosigned:
        _keep(home, "others", cosigned)


def others(home: Path) -> list[tuple[Voucher, bytes]]:
    """What other institutions have cosigned of the agency's log, as it told, the newest first."""
    return _kept(home, "others")


def _keep(home: Path, table: str, cosigned: Sequence[tuple[Voucher, bytes]]) -> None:
    """Keep what is new; the same head cosigned once more is not, and costs no write while nothing happens."""
    now, known = int(time.time()), {voucher.origin: _said(voucher, note) for voucher, note in _kept(home, table)}
    rows = [
        (voucher.origin, voucher.to_bytes(), note, now)
        for voucher, note in cosigned
        if known.get(voucher.origin) != _said(voucher, note)
    ]
    if not rows:
        return
    with _database(home) as db:
        db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", rows)  # noqa: S608 - ours


def _said(voucher: Voucher, note: bytes) -> tuple[bytes, Checkpoint]:
    """By which keys which head is cosigned: all but when."""
    return voucher.to_bytes(), read_checkpoint(note)


def _kept(home: Path, table: str) -> list[tuple[Voucher, bytes]]:
    if not (home / FILE).exists():
        return []
    with reading(home / FILE, "witness") as db:  # a trainer, too, which may not write it
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone() is None:
            return []
        rows = db.execute(f"SELECT keys, note FROM {table} ORDER BY at DESC, origin").fetchall()  # noqa: S608 - ours
    return [(read_voucher(bytes(keys)), bytes(note)) for keys, note in rows]


def trusting(origin: str) -> str:
    """What its operator has to type, and where, for the log `origin` to be taken as it is shown next."""
    if origin.startswith(AGENCY):
        return f"`sovfed client log trust {origin}`"
    return f"`sovfed server log trust {origin}` at the agency"


def problems(home: Path) -> dict[str, str]:
    """Why which logs are not cosigned, by origin. Raises EvidenceError if that cannot be read."""
    path = home / SPLIT
    try:
        return {str(origin): str(problem["why"]) for origin, problem in _noted(path).items()}
    except (TypeError, KeyError) as error:
        raise EvidenceError(f"{path}: cannot be read") from error


def _noted(path: Path) -> dict[str, Any]:
    """What `note_split` has written; nothing where it has not. Raises EvidenceError if it cannot be read."""
    if not path.exists():
        return {}
    try:
        values = json.loads(read_private(path))
    except ValueError as error:
        raise EvidenceError(f"{path}: cannot be read") from error
    if not isinstance(values, dict):
        raise EvidenceError(f"{path}: cannot be read")
    return values


def forget(home: Path, origin: str) -> bool:
    """Take the log `origin` as it is shown next, whatever was seen before; whether anything was."""
    path = home / SPLIT
    kept = _noted(path)
    known = kept.pop(origin, None) is not None
    if known:
        write_private(path, json.dumps(kept, indent=1).encode()) if kept else path.unlink()
    if not (home / FILE).exists():
        return known
    with _database(home) as db:
        rows = [
            db.execute(f"DELETE FROM {table} WHERE origin = ?", (origin,)).rowcount  # noqa: S608 - ours
            for table in ("seen", "own", "others")
        ]
    return known or any(rows)


def _require_goes_on(
    known: Voucher, old: Checkpoint, voucher: Voucher, head: Checkpoint, proof: Sequence[bytes]
) -> None:
    if (known.log, known.witness) != (voucher.log, voucher.witness):
        raise SplitError(f"log {head.origin}: signed by another key than before: it was begun anew")
    if head.size < old.size:
        raise SplitError(f"log {head.origin}: {head.size} entries, and it had {old.size}: rolled back, or an old head")
    if not merkle.consistent(old.size, old.root, head.size, head.root, proof):
        raise SplitError(f"log {head.origin}: its {head.size} entries do not go on from the {old.size} seen before")


def note_split(home: Path, origin: str, why: str, note: bytes) -> None:
    """Write down `why` the log `origin` is not cosigned any more; `note` is the head that shows it."""
    path = private_directory(home / WITNESS_FOLDER) / Path(SPLIT).name
    kept = _noted(path)
    kept.setdefault(origin, {"why": why, "at": int(time.time()), "note": note.decode(errors="replace")})
    write_private(path, json.dumps(kept, indent=1).encode())


def _database(home: Path) -> AbstractContextManager[sqlite3.Connection]:
    return writing(private_directory(home / WITNESS_FOLDER) / Path(FILE).name, _SCHEMA)
