"""Who of a run's institutions has joined its lane, and since when the others are missing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sovfed.federation.files import write_atomic

FILE: Final = "presence.json"
NAMED: Final = 8  # institutions that a sentence names


@dataclass(frozen=True)
class Presence:
    """So many of those wanted have joined; `missing` are the others that are known, and since when (Unix time)."""

    joined: int
    wanted: int
    missing: dict[str, float]

    def sentence(self) -> str:
        """As people read it: "31 of 32 joined, missing hospital-27 since 14:02:11"."""
        text = f"{self.joined} of {self.wanted} joined"
        if not self.missing:
            return text
        told = [f"{name} since {_clock(self.missing[name])}" for name in sorted(self.missing)]
        more = f" and {len(told) - NAMED} more" if len(told) > NAMED else ""
        return f"{text}, missing {', '.join(told[:NAMED])}{more}"


@dataclass(frozen=True)
class Awaited:
    """Whom a run waits for: `wanted` institutions, for `patience_s` at most, of those that are `expected` by name.

    Only those whose name is `asked` count: a run may be for a named cohort of those that are connected.
    """

    wanted: int = 0
    patience_s: float = 0.0
    expected: tuple[str, ...] = ()
    on_change: Callable[[Presence], None] = field(default=lambda _: None)
    asked: Callable[[str], bool] = field(default=lambda _: True)


NOBODY: Final = Awaited()


def write_presence(folder: Path, presence: Presence) -> None:
    """Put `presence` into the run's folder."""
    write_atomic(folder / FILE, json.dumps(asdict(presence)).encode(), 0o600, durable=False)


def read_presence(folder: Path) -> Presence | None:
    """What the run's coordinator has last written; None where it has not yet."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Presence(**values)
    except (OSError, ValueError, TypeError):
        return None


def _clock(since: float) -> str:
    """The time of day; the date too if that was on another day."""
    moment = time.localtime(since)
    return time.strftime("%H:%M:%S" if moment[:3] == time.localtime()[:3] else "%F %H:%M:%S", moment)
