"""Small databases in a home: SQLite, one write transaction at a time, on disk once it ends."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import EvidenceError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY_S: Final = 30.0  # how long a transaction waits for another process's


@contextlib.contextmanager
def writing(path: Path, schema: str, busy_s: float = BUSY_S) -> Iterator[sqlite3.Connection]:
    """One write transaction on the database `path` (made with mode 0600), synced to disk once the block ends.

    `schema`: statements that may be run again, each but the last ended by ";" and a new line. An error in the block
    undoes all of it. Raises ServiceError where the database cannot be opened or written.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, timeout=busy_s, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        for statement in schema.split(";\n"):
            db.execute(statement)
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    except sqlite3.Error as error:
        raise ServiceError(f"{path}: cannot be written: {error}") from error
    finally:
        db.close()


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator[sqlite3.Connection]:
    """The database `path`, opened for writing where that is allowed, though nothing is written but what undoes a dead
    writer's half. Else a power cut within a transaction would keep everything from starting that reads it first.

    Who may only read, as a gateway, waits for whoever writes: ServiceError, as where there is no `what` to read.
    Raises EvidenceError where it is no database.
    """
    try:
        db = sqlite3.connect(f"file:{path.absolute()}?mode=rw", uri=True, timeout=BUSY_S)
    except sqlite3.OperationalError as error:
        raise ServiceError(f"{path}: no {what} to read") from error
    try:
        yield db
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
            raise ServiceError(f"{path}: a writer died in the middle; whoever writes next undoes it") from error
        raise EvidenceError(f"{path}: cannot be read as a database: {error}") from error
    finally:
        db.close()


def compact(path: Path) -> None:
    """Write the database `path` anew without what was deleted from it. Killed at any moment, it leaves all as it was.

    The copy is in memory meanwhile, for a trainer has no other folder to write in. Raises ServiceError.
    """
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        for statement in ("journal_mode = TRUNCATE", "synchronous = FULL", "temp_store = MEMORY"):
            db.execute(f"PRAGMA {statement}")
        db.execute("VACUUM")
    except sqlite3.Error as error:
        raise ServiceError(f"{path}: was not made smaller: {error}") from error
    finally:
        db.close()
