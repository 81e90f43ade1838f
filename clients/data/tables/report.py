"""What was seen while a table was read: counts, columns and line numbers, and never a value."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data.tables import words
from sovfed.federation.schema import nearest
from sovfed.federation.tasks.columns import REFUSE
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sovfed.federation.tasks.columns import Column

FIRST: Final = 5  # lines that are named
COLUMNS: Final = 8  # columns that are named
OWN_WORDS: Final = (
    ", or your own words for these in the file of data.mapping: columns: {COLUMN: {values: {OWN WORD: TASK'S WORD}}}"
)
DAYS: Final = (
    "; expected year-month-day, or as said: data.date_format=%d.%m.%Y of 31.01.2026, %d/%m/%Y, %m/%d/%Y or %Y/%m/%d "
    "where there are slashes, with %H:%M behind it where there is a time, excel of numbers such as 46053"
)
CODES: Final = "; codes such as 1 and 2 mean nothing by themselves: the task's `true` and `false` give them a meaning"
MAX_LINES: Final = 1_000_000  # of bad rows that are written down
Mask = npt.NDArray[np.bool_]
Lines = npt.NDArray[np.int64]


@dataclass
class Count:
    """How often something was seen, and in which lines first."""

    total: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, lines: Sequence[int] | Lines) -> None:
        self.total += len(lines)
        if len(self.lines) < FIRST:
            self.lines += [int(line) for line in lines[: FIRST - len(self.lines)]]


@dataclass
class Report:
    """Of one table: rows seen, rows used, and what is wrong with the others by column and kind of fault."""

    where: str
    rows: int = 0  # that are not empty
    used: int = 0
    empty: int = 0
    bad: int = 0  # rows with at least one fault
    notes: list[str] = field(default_factory=list)  # how the file was read
    warnings: list[str] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # by column, where it may be
    faults: dict[tuple[str, str], Count] = field(default_factory=lambda: defaultdict(Count))
    bad_lines: list[tuple[int, str, str]] = field(default_factory=list)  # line, column, fault

    def fault(self, column: str, kind: str, lines: Sequence[int] | Lines) -> None:
        """Note that `column` is at fault in `lines`."""
        self.faults[column, kind].add(lines)
        room = max(0, MAX_LINES - len(self.bad_lines))
        self.bad_lines += [(int(line), column, kind) for line in lines[:room]]

    def told(self, columns: dict[str, Column], word: str) -> str:
        """The faults in one sentence each, at most `COLUMNS`."""
        shown = [sentence(columns.get(name), name, kind, count, word) for (name, kind), count in self.faults.items()]
        more = f"; and {len(shown) - COLUMNS} more" if len(shown) > COLUMNS else ""
        return "; ".join(shown[:COLUMNS]) + more


def sentence(column: Column | None, name: str, kind: str, count: Count, word: str = "line") -> str:
    """A fault with its count, its first lines and how it is mended."""
    first = ", ".join(map(str, count.lines))
    lines = f"{word}{'s' if count.total > 1 else ''} {first}{'…' if count.total > len(count.lines) else ''}"
    subject = f"column '{visible(name)}': " if name else ""
    return f"{subject}{count.total} {_noun(kind, count.total)} ({lines}){_fix(column, kind)}"


def _noun(kind: str, count: int) -> str:
    singular, plural = {
        words.MISSING: ("value is missing", "values are missing"),
        words.NUMBER: ("value is no number", "values are no numbers"),
        words.LIMIT: ("value is given as below or above a limit", "values are given as below or above a limit"),
        words.OUTSIDE: ("value is outside its bounds", "values are outside their bounds"),
        words.UNKNOWN: ("value is no known word", "values are no known words"),
        words.CODED: ("value is a code that the task does not have", "values are codes that the task does not have"),
        words.DATE: ("value is no date", "values are no dates"),
        words.CELLS: ("row has more or fewer cells than the header", "rows have more or fewer cells than the header"),
        words.PERSON: ("row names no person", "rows name no person"),
        words.FILE: ("file does not fit", "files do not fit"),
    }[kind]  # fmt: skip
    return singular if count == 1 else plural


def _fix(column: Column | None, kind: str) -> str:
    """What to do about it, from the task's own words alone."""
    match kind:
        case words.LIMIT:
            return "; data.detection_limit=limit takes the limit itself"
        case words.NUMBER:
            return "; see data.decimal and data.missing_words"
        case words.DATE:
            return DAYS
        case words.OUTSIDE if column is not None and column.kind == "number":
            low, high = column.bounds
            unit = f" {column.unit}" if column.unit else ""
            coded = "goes into data.missing_words" if column.missing != REFUSE else "needs a rule 'missing' in the task"
            wider = "where it is right, the task needs wider bounds, the same everywhere"
            return f"; expected {low:g} to {high:g}{unit}; a code of a missing value, such as -99, {coded}; {wider}"
        case words.OUTSIDE if column is not None:
            low, high = column.bounds
            return f"; expected {low:g} to {high:g}{f' {column.unit}' if column.unit else ''}"
        case words.UNKNOWN | words.CODED if column is not None:
            return _expected(column, kind)
        case words.MISSING if column is not None and column.role == "input":
            return "; the task's rule for this column is to refuse"
    return ""


def _expected(column: Column, kind: str) -> str:
    options = column.categories or ("no", "yes")
    shown = ", ".join(f"'{word}'" for word in options[:COLUMNS]) + ("…" if len(options) > COLUMNS else "")
    codes = kind == words.CODED and len(options) == 2
    return f"; expected {shown}{CODES if codes else ''}{OWN_WORDS}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """A hint at a header that is like `name`."""
    return nearest(name, [visible(word)[:64] for word in known[:256] if word]) if known else ""


def masked(lines: Lines, mask: Any) -> Lines:
    """The lines where `mask` holds."""
    chosen: Lines = lines[mask]
    return chosen
