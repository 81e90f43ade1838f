"""What a cell's text means: missing, yes or no, a category, a number, a day. One cell at a time, by declared rules.

Nothing here looks at another row: what a cell means never depends on who else is in the table.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.config.data import EXCEL

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks.columns import Column

ABSENT: Final = frozenset(
    {
        "", "-", "--", ".", "?", "na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "nat", "null", "none", "nil",
        "#null!", "missing", "k.a.", "k. a.", "n.a.", "n. a.",
    }
)  # fmt: skip
NOBODY: Final = frozenset({"", "-", "<na>", "#n/a", "n/a", "na", "nan", "nat", "none", "null"})  # as a person's name
TRUE: Final = frozenset({"1", "true", "t", "yes", "y", "ja", "j", "oui", "si", "sí", "wahr", "vrai", "はい"})
FALSE: Final = frozenset({"0", "false", "f", "no", "n", "nein", "non", "falsch", "faux", "いいえ"})

MISSING: Final = "missing"
NUMBER: Final = "number"
LIMIT: Final = "limit"
OUTSIDE: Final = "outside"
UNKNOWN: Final = "unknown"
CODED: Final = "coded"
DATE: Final = "date"
CELLS: Final = "cells"
PERSON: Final = "person"
FILE: Final = "file"

_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_CENSORED: Final = re.compile(r"[<>≤≥]=?\s*(?=[+-]?[0-9.,])")
_WHOLE: Final = re.compile(r"([0-9]+)\.0+")
_ISO: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ][0-9:.]*(?:Z|[+-][0-9:]{2,6})?)?")
_DAY_FIRST: Final = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})")
_EPOCH: Final = datetime.date(1970, 1, 1).toordinal()
_SERIAL: Final = re.compile(r"([0-9]{2,7})(?:[.,][0-9]+)?")  # a day as Excel counts it, and the time of day
_SERIAL_EPOCH: Final = datetime.date(1899, 12, 30).toordinal()
_FIRST_SERIAL: Final = 61  # 1900-03-01: before it Excel counts a 29th of February that never was


def fold(text: str) -> str:
    """`text` as words are compared: NFC, each space as one and none around it, in small letters."""
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def person_name(cell: str) -> str:
    """The name in a cell as it is compared: in Unicode's NFC, without spaces around it, and each within it as one."""
    return " ".join(unicodedata.normalize("NFC", cell).split())


def is_nobody(name: str) -> bool:
    """Whether a name, as it is compared, stands for none: all such rows would be one person's."""
    return name.lower() in NOBODY


@dataclass(frozen=True)
class Rules:
    """How an institution's cells are written, as its settings declare it."""

    decimal: str = "."
    limits: str = "refuse"  # of a value below detection, as in <0.2; "limit" takes the limit
    date_format: str = ""  # "": ISO 8601
    more_absent: tuple[str, ...] = ()
    either_day: bool = False  # without a format also as in 31.01.2026: neither can be taken for the other

    @classmethod
    def of(cls, config: DataConfig, decimal: str = ".", *, either_day: bool = False) -> Rules:
        """The rules that the settings declare, with the file's own decimal mark."""
        return cls(decimal, config.detection_limit, config.date_format or "", config.missing_words, either_day)

    @cached_property
    def absent(self) -> frozenset[str]:
        """Every word that says that there is no value, as `fold` writes it."""
        return ABSENT | {fold(word) for word in self.more_absent}

    @cached_property
    def plain_days(self) -> bool:
        """Whether a date as 2026-01-31 is that day, whatever else is declared."""
        return not self.date_format and not any(_ISO.fullmatch(word) for word in self.absent)

    @cached_property
    def absent_numbers(self) -> npt.NDArray[np.float32]:
        """The numbers among those words, as -99, however a cell spells them: as numbers are stored."""
        texts = [word.replace(",", ".") if self.decimal == "," else word for word in self.more_absent]
        return np.array([float(text) for text in texts if _NUMBER.fullmatch(text)], np.float32)

    def number(self, cell: str) -> tuple[float, str]:
        """The number in a cell and "", or NaN and what is wrong with it."""
        text = " ".join(cell.split()).replace("−", "-")
        if fold(text) in self.absent:
            return float("nan"), MISSING
        censored = _CENSORED.match(text)
        if censored is not None:
            text = text[censored.end() :]
        if self.decimal == ",":
            text = text.replace(",", ".") if "." not in text else "?"
        if not _NUMBER.fullmatch(text):
            return float("nan"), NUMBER
        if censored is not None and self.limits == "refuse":
            return float("nan"), LIMIT
        value = float(text)
        return (float("nan"), MISSING) if censored is None and self._is_absent(value) else (value, "")

    def _is_absent(self, value: float) -> bool:
        with np.errstate(over="ignore"):
            return len(self.absent_numbers) > 0 and bool((np.float32(value) == self.absent_numbers).any())

    def day(self, cell: str) -> tuple[float, str]:
        """Days from 1970-01-01 to the date in a cell and "", or NaN and what is wrong with it."""
        text = cell.strip()
        if fold(text) in self.absent:
            return float("nan"), MISSING
        try:
            if self.date_format == EXCEL:
                serial = _SERIAL.fullmatch(text)
                if serial is None or int(serial[1]) < _FIRST_SERIAL:
                    return float("nan"), DATE
                date = datetime.date.fromordinal(_SERIAL_EPOCH + int(serial[1]))
            elif self.date_format:
                date = datetime.datetime.strptime(text, self.date_format).date()  # noqa: DTZ007 - a day has no zone
            elif iso := _ISO.fullmatch(text):
                date = datetime.date.fromisoformat(iso[1])
            elif self.either_day and (own := _DAY_FIRST.fullmatch(text)):
                date = datetime.date(int(own[3]), int(own[2]), int(own[1]))
            else:
                return float("nan"), DATE
        except ValueError:
            return float("nan"), DATE
        return float(date.toordinal() - _EPOCH), ""


class Words:
    """The words of a boolean's or a category's values, and the code of each.

    `by_number` has which category each number was taken for, of those that were seen and that are no word of it.
    """

    def __init__(self, column: Column, rules: Rules) -> None:
        self._absent = rules.absent
        self._exact = {person_name(word): code for code, word in enumerate(column.categories)}
        self._codes = _boolean(column) if column.kind == "boolean" else _categories(column)
        declared = {fold(word) for word in (*column.categories, *column.true, *column.false)}
        digits = {word for word in self._codes if word.isdecimal()} if column.kind == "category" else set[str]()
        self._numbers, self.by_number = digits - declared, dict[str, str]()
        self._categories = column.categories

    def code(self, cell: str) -> tuple[int, str]:
        """The code of a cell's word and "", or -1 and what is wrong with it."""
        if (exact := person_name(cell)) in self._exact:
            return self._exact[exact], ""
        word = fold(cell)
        integer = _WHOLE.fullmatch(word)
        for form in (word, integer[1] if integer else word):
            if form in self._codes:
                if form in self._numbers:
                    self.by_number[form] = self._categories[self._codes[form]]
                return self._codes[form], ""
        if word in self._absent:
            return -1, MISSING
        return -1, CODED if (integer[1] if integer else word).isdecimal() else UNKNOWN


def _boolean(column: Column) -> dict[str, int]:
    """The usual words, and those that the column declares; a declared digit takes all usual digits away."""
    return _two({**dict.fromkeys(FALSE, 0), **dict.fromkeys(TRUE, 1)}, column)


def _two(usual: dict[str, int], column: Column) -> dict[str, int]:
    declared = {fold(word): 0 for word in column.false} | {fold(word): 1 for word in column.true}
    if any(word.isdecimal() for word in declared):
        usual = {word: code for word, code in usual.items() if not word.isdecimal()}
    return usual | declared


def _categories(column: Column) -> dict[str, int]:
    """The categories' own words, and their numbers unless they are numbers themselves; of two, also yes and no.

    Of yes and no 1 is yes in whichever order they stand; of other categories a number is the place, from 0.
    """
    words = [fold(word) for word in column.categories]
    own = {word: code for code, word in enumerate(words) if words.count(word) == 1}  # else capitals tell them apart
    numbers = {} if any(word.isdecimal() for word in words) else {str(code): code for code in range(len(words))}
    if len(words) != 2:
        return numbers | own
    for yes, no in ((1, 0), (0, 1)):
        if words[yes] in TRUE and words[no] in FALSE and not words[yes].isdecimal():
            numbers = dict.fromkeys(TRUE, yes) | dict.fromkeys(FALSE, no)
    return _two(numbers, column) | own
