"""Entries of what the network can cause at will: at most one a minute of each sort, which says how many there were."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.federation.evidence.store import record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MINUTE_S: Final = 60.0


@dataclass
class _Sort:
    written: float
    more: int = 0


class Counted:
    """Counts what happens by `kind` and fields, whose values must be few; the first is in the log at once.

    What is counted and not yet written is lost if the process is killed: at most a minute of it.
    """

    def __init__(self, home: Path, kind: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._home, self._kind, self._clock = home, kind, clock
        self._sorts: dict[tuple[tuple[str, str], ...], _Sort] = {}
        self._lock = threading.Lock()

    def add(self, **fields: str) -> None:
        """Count one more of this sort."""
        with self._lock:
            key = tuple(sorted(fields.items()))
            sort = self._sorts.setdefault(key, _Sort(-MINUTE_S))
            sort.more += 1
            self._write(key, sort)

    def look(self) -> None:
        """Write what a minute has passed over. Call it now and then."""
        with self._lock:
            for key, sort in self._sorts.items():
                self._write(key, sort)

    def close(self) -> None:
        """Write all that is left."""
        with self._lock:
            for key, sort in self._sorts.items():
                self._write(key, sort, wait_s=0.0)

    def _write(self, key: tuple[tuple[str, str], ...], sort: _Sort, wait_s: float = MINUTE_S) -> None:
        now = self._clock()
        if sort.more and now - sort.written >= wait_s:
            record(self._home, self._kind, **dict(key), count=sort.more)
            sort.written, sort.more = now, 0
