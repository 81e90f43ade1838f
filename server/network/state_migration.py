"""A new version of Flower changes its database when it starts: a copy from before is kept, for the way back."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from sovfed.federation.errors import ServiceError

if TYPE_CHECKING:
    from pathlib import Path


def keep_copy_before_change(database: Path) -> Path | None:
    """Copy `database` beside itself if the installed Flower will change its tables; the copy, or None.

    Raises ServiceError if a newer Flower has changed them already: the installed one would end with a traceback.
    """
    revision = _revision(database)
    known, latest = _known()
    if revision is None or revision == latest:
        return None
    if revision not in known:
        copies = ", ".join(str(path) for path in sorted(database.parent.glob(f"{database.name}.*"))) or "none"
        raise ServiceError(
            f"{database}: changed by a newer Flower (revision {revision}, known up to {latest}); install that version "
            f"again, or put the copy from before in its place, without -wal and -shm beside it (copies: {copies})"
        )
    copy = database.with_name(f"{database.name}.{revision}")
    copy.unlink(missing_ok=True)
    os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return copy


def _revision(database: Path) -> str | None:
    """What Flower wrote of the tables' state; None if it made none yet."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError:
        return None
    return None if row is None else str(row[0])


def _known() -> tuple[set[str], str]:
    """The revisions that the installed Flower knows, and the latest."""
    from alembic.script import ScriptDirectory
    from flwr.supercore.state.alembic.utils import ALEMBIC_DIR

    scripts = ScriptDirectory(str(ALEMBIC_DIR))
    return {script.revision for script in scripts.walk_revisions()}, str(scripts.get_current_head())
