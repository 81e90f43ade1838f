"""Entries that something waits for: on disk ahead of the log where that can be, for its database takes longer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sovfed.federation.evidence.ahead import Ahead
from sovfed.federation.evidence.store import ahead_key, enter_ahead, has_log, record

if TYPE_CHECKING:
    from pathlib import Path


class Noting:
    """Appends to the log of `home`. One process of a home writes ahead of it; any other, and all else, `record`."""

    def __init__(self, home: Path) -> None:
        self._home, self._ahead = home, Ahead(home)

    def begin(self) -> bool:
        """Whether entries stand ahead from now on; what a process that died has left is entered. Raises SovfedError."""
        if self._ahead.is_open or not has_log(self._home) or not (key := ahead_key(self._home)):
            return self._ahead.is_open
        return self._ahead.begin(key, self._enter)

    def note(self, kind: str, /, **fields: Any) -> None:
        """Have an entry on disk. Raises SovfedError."""
        self.write(kind, **fields)
        self.sync()

    def write(self, kind: str, /, **fields: Any) -> None:
        """Write an entry down, which is on disk after `sync`. Raises SovfedError."""
        if self.begin():
            self._ahead.add(kind, int(time.time()), fields)
        else:
            record(self._home, kind, **fields)

    def sync(self) -> None:
        """Have all that was written on disk. Raises SovfedError."""
        if self._ahead.is_open:
            self._ahead.sync()

    def look(self) -> None:
        """Enter what stands ahead. Call it now and then. Raises SovfedError or OSError."""
        self._ahead.enter(self._enter)

    def close(self) -> None:
        """Enter all of it, and leave nothing behind."""
        self._ahead.enter(self._enter, renew=True)
        self._ahead.close()

    @classmethod
    def leave_nothing(cls, home: Path) -> None:
        """Nothing that the log of `home` has stands ahead of it any more, unless a process that lives writes there."""
        noting = cls(home)
        if noting.begin():
            noting.close()

    def _enter(self) -> bool:
        return enter_ahead(self._home)
