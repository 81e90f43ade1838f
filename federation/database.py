"""Small databases in a home: SQLite, one write transaction at a time, on disk once it ends."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ServiceError

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
