"""Flower's SQLite database, made so that only we can read it and kept so that it does not grow with rounds.

Flower deletes a message once it is delivered but never gives the space back, and its write-ahead log keeps its largest
size. The file is therefore made with incremental vacuum before Flower sees it, and `trim` hands free pages back in
small steps. A step that meets a lock gives up and comes again: waiting for the lock, it would make Flower's own
writers wait, and a heartbeat that fails on "database is locked" kills its run.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

BUSY_TIMEOUT_MS: Final = 20_000  # below the 30 s after which Flower's HTTP client gives up
WAL_LIMIT_BYTES: Final = 16 * 2**20
LAPSED_EVERY_S: Final = 1.0  # between two looks for leases that have lapsed
LEASE_S: Final = 600.0  # a coordinator whose heartbeats do not arrive for so long loses its task; Flower: 60
STEP_PAGES: Final = 1024  # 4 MiB of 4 KiB pages in one write transaction
KEPT_FREE_PAGES: Final = 1024  # left for the next round, so that a steady load does not move the file's end
_INCREMENTAL: Final = 2


def prepare(path: Path) -> None:
    """Make the database at `path` (directory 0700, file 0600) with incremental vacuum; convert one made without."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)
    with closing(_connect(path, timeout_s=30.0)) as database:
        if _pragma(database, "auto_vacuum") != _INCREMENTAL:
            database.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
            database.execute("VACUUM")


def use_patient_pragmas() -> None:
    """Let Flower's connections wait longer for a lock, and bound the write-ahead log they leave."""
    from flwr.supercore import sql_mixin

    settings = {"busy_timeout": str(BUSY_TIMEOUT_MS), "journal_size_limit": str(WAL_LIMIT_BYTES)}
    names = vars(sql_mixin)  # the module that opens the connections imported the tuple by name
    names["SQLITE_PRAGMAS"] = tuple((dict(names["SQLITE_PRAGMAS"]) | settings).items())


def use_long_leases() -> None:
    """Let Flower keep a running coordinator's task for `LEASE_S` without a heartbeat.

    Rounds go over the lane and need no superlink: one that hangs must not end them. Whether a coordinator lives is
    told by its run's folder, not by its lease.
    """
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
    from flwr.supercore.corestate import sql_corestate

    vars(sql_corestate)["HEARTBEAT_PATIENCE"] = LEASE_S / HEARTBEAT_DEFAULT_INTERVAL  # imported by name; of tasks alone


def look_for_lapsed_leases_seldom() -> None:
    """Let Flower's state look for tasks whose lease has lapsed every `LAPSED_EVERY_S`, not at each call of a node.

    Each look is two writes: a third of what an institution's way into a run costs the superlink.
    """
    from flwr.supercore.corestate.sql_corestate import SqlCoreState

    look = inspect.unwrap(vars(SqlCoreState)["_cleanup_expired_task_tokens"])

    @functools.wraps(look)
    def seldom(state: SqlCoreState) -> None:
        now = time.monotonic()
        if now - vars(state).get("_looked", -math.inf) >= LAPSED_EVERY_S:
            vars(state)["_looked"] = now
            look(state)

    setattr(SqlCoreState, look.__name__, seldom)


def trim(path: Path, *, keep_pages: int = KEPT_FREE_PAGES, max_steps: int = 64) -> int:
    """Give free pages back to the file system, at most `max_steps` small transactions; returns the pages given back."""
    returned = 0
    try:
        with closing(_connect(path, timeout_s=0.05)) as database:
            for _ in range(max_steps):
                free = _pragma(database, "freelist_count")
                if free <= keep_pages:
                    break
                # `execute` would step this statement once, which frees one page; `executescript` runs it to its end.
                database.executescript(f"PRAGMA incremental_vacuum({min(free - keep_pages, STEP_PAGES)})")
                returned += free - _pragma(database, "freelist_count")
            if returned or _wal_bytes(path) > WAL_LIMIT_BYTES:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.OperationalError as error:
        if "locked" not in str(error) and "busy" not in str(error):
            raise
    return returned


def _connect(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=timeout_s, isolation_level=None)


def _pragma(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


def _wal_bytes(path: Path) -> int:
    wal = path.with_name(path.name + "-wal")
    return wal.stat().st_size if wal.exists() else 0
