"""Entries that something waits for: on disk ahead of the log where that can be, for its database takes longer."""

from __future__ import annotations

import os
import secrets
import time
from typing import TYPE_CHECKING, Any

from sovfed.federation.errors import EvidenceError, ServiceError
from sovfed.federation.evidence.ahead import FILE, Ahead, Standing
from sovfed.federation.evidence.standing import Mend
from sovfed.federation.evidence.store import ahead_key, enter_ahead, has_log, record

if TYPE_CHECKING:
    from pathlib import Path


class Noting:
    """Appends to the log of `home`. One process of a home writes ahead of it; any other, and all else, `record`."""

    def __init__(self, home: Path) -> None:
        self._home, self._ahead, self._mend = home, Ahead(home, self._enter), Mend.LAST_LINE
        self._aside: Path | None = None

    def begin(self) -> bool:
        """Whether entries stand ahead from now on; what a process that died has left is entered. Raises SovfedError."""
        if self._ahead.is_open or not has_log(self._home) or not (key := ahead_key(self._home)):
            return self._ahead.is_open
        return self._ahead.begin(key)

    def note(self, kind: str, /, **fields: Any) -> None:
        """Have an entry on disk. Raises SovfedError."""
        self.write(kind, **fields)
        self.sync()

    def write(self, kind: str, /, **fields: Any) -> None:
        """Write an entry down, which is on disk after `sync`. Raises SovfedError."""
        if not self.begin() or not self._ahead.add(kind, int(time.time()), fields):
            record(self._home, kind, **fields)

    def sync(self) -> None:
        """Have all that was written on disk. Raises SovfedError."""
        self._ahead.sync()

    def look(self) -> None:
        """Enter what stands ahead. Call it now and then. Raises SovfedError or OSError."""
        self._ahead.enter()

    def close(self) -> None:
        """Enter all of it, and leave nothing behind. Raises as `look`."""
        self._ahead.close()

    @classmethod
    def leave_nothing(cls, home: Path) -> None:
        """Nothing that the log of `home` has stands ahead of it any more, unless a process that lives writes there."""
        noting = cls(home)
        if noting.begin():
            noting.close()

    @classmethod
    def mend(cls, home: Path) -> Path | None:
        """Set aside what stands ahead of the log of `home` and cannot be entered, with an entry that tells so.

        Where the file lies then; None where all could be entered, or there was no file. Raises ServiceError where a
        process that lives writes there, or there is no log.
        """
        mending = cls(home)
        mending._mend = Mend.ALL
        if not mending.begin():
            raise ServiceError(f"{home}: no log, or a process that writes ahead of it: stop that one first")
        mending.close()
        return mending._aside

    def _enter(self, known: Standing | None, *, changed: bool = False, begins: str = "") -> bool:
        if self._mend != Mend.ALL or known is not None:
            return enter_ahead(self._home, known, changed=changed, begins=begins, mend=self._mend)
        try:
            return enter_ahead(self._home, begins=begins)
        except EvidenceError:
            entered = enter_ahead(self._home, begins=begins, mend=Mend.ALL)
        file = self._home / FILE
        if os.path.lexists(file):
            self._aside = file.rename(file.with_name(f"{file.name}.aside-{secrets.token_hex(4)}"))
        return entered
