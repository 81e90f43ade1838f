"""What of the file ahead of a log (`ahead.py`) is entered, and what of it cannot be, and why."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import EvidenceError
from sovfed.federation.evidence.ahead import CLOSED, FILE, Standing, read_ahead, read_lines

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CHANGED: Final = "it was changed while it was written; what stood in it was entered from memory"
DAMAGED: Final = "a line is damaged, or not by whoever has the log's key"
GONE: Final = "it is gone"
STRANGE: Final = "it is not the file that the log goes on in: an older one, or another log's"


class Mend(IntEnum):
    """What is set aside where it cannot be entered."""

    NOTHING = 0
    LAST_LINE = 1
    """One damaged line at the end, as a power cut leaves it: who cuts that off unseen could take it away as well."""
    ALL = 2


@dataclass(frozen=True)
class Due:
    """The entries that are to be entered, of the file `name` ("": none), which is then entered up to `end`.

    Of the rest `why` says why it cannot be, "" where there is none; `mend` what would have to be set aside.
    """

    name: str
    entries: list[tuple[str, int, dict[str, Any]]] = field(default_factory=list)
    end: int = 0
    why: str = ""
    rest: bytes = b""
    mend: Mend = Mend.ALL

    def told(self) -> dict[str, Any]:
        """The fields of the entry that tells what was set aside."""
        digest = hashlib.sha256(self.rest).hexdigest()
        return {"file": FILE, "why": self.why, "bytes": len(self.rest), "sha256": digest}


def due(home: Path, key: bytes, entered: Mapping[str, int], known: Standing | None) -> Due:
    """What is due where the database has `entered` so much of which files: of what is `known` to stand there, or does.

    The database knows the file that is written and the one before it, which may be there still.
    """
    try:
        standing = read_ahead(home) if known is None else known
    except EvidenceError as error:
        return Due("", why=str(error).removeprefix(f"{FILE}: "))
    if standing is None:
        return Due("", why=GONE if any(entered.values()) and CLOSED not in entered else "")
    if standing.name not in entered:
        strange = bool(standing.lines or entered)
        return Due(standing.name, why=STRANGE if strange else "", rest=standing.lines)
    entries, end = read_lines(key, standing, entered[standing.name])
    rest = standing.lines[end:]
    if b"\n" not in rest:
        return Due(standing.name, entries, end)
    last = rest.find(b"\n") == len(rest) - 1
    return Due(standing.name, entries, len(standing.lines), DAMAGED, rest, Mend.LAST_LINE if last else Mend.ALL)
