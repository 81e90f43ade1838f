"""The cells of a CSV file as programs export it: encoding, separator and decimal mark are found and said."""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BYTES: Final = 1 << 28
MAX_ROWS: Final = 100_000  # that are looked at
MAX_NAMES: Final = 10_000
SEPARATORS: Final = (",", ";", "\t", "|")
_COMMA: Final = re.compile(r"[-+]?[0-9]+,[0-9]+", re.ASCII)
_POINT: Final = re.compile(r"[-+]?[0-9]+\.[0-9]+", re.ASCII)
_NAMES: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclass(frozen=True, repr=False)
class Sheet:
    """Names and rows of text cells, all without spaces around them."""

    names: tuple[str, ...]
    rows: list[list[str]]
    encoding: str
    separator: str
    decimal: str

    def column(self, name: str) -> list[str]:
        place = self._places[name]
        return [row[place] for row in self.rows]

    @property
    def said(self) -> str:
        """How the file was read."""
        mark = "decimal comma" if self.decimal == "," else "decimal point"
        return f"read as {self.encoding}, separated by {_NAMES[self.separator]}, {mark}"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}


def read_sheet(path: Path) -> Sheet:
    """The first 100,000 records of the CSV file `path`. Raises DataError, with the line but never a value."""
    text, encoding = _decoded(path)
    head = text.partition("\n")[0]
    separator = max(SEPARATORS, key=head.count)
    try:
        lines = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
        names = tuple(name.strip() for name in next(lines, []))
        _check_names(names, path)
        rows = []
        for row in itertools.islice(lines, MAX_ROWS):
            cells = [cell.strip() for cell in row]
            if not any(cells):  # as spreadsheets leave behind
                continue
            if len(cells) != len(names):
                raise DataError(f"{path.name}: line {lines.line_num} has {len(cells)} cells, the header {len(names)}")
            rows.append(cells)
    except csv.Error as error:
        raise DataError(f"{path.name}: not readable as CSV: {error}") from error
    return Sheet(names, rows, encoding, separator, _decimal(rows, separator))


def _decoded(path: Path) -> tuple[str, str]:
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: not readable: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES >> 20} MiB; propose the task from a part of it")
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding), encoding.removesuffix("-sig")
        except UnicodeDecodeError:
            continue
    raise DataError(f"{path}: neither UTF-8 nor UTF-16 nor cp1252; export it as UTF-8")


def _check_names(names: tuple[str, ...], path: Path) -> None:
    named = [name for name in names if name]
    if not named or len(names) > MAX_NAMES:
        raise DataError(f"{path.name}: {len(names)} columns in the header, expected 1 to {MAX_NAMES} with names")
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise DataError(f"{path.name}: {len(twice)} names stand twice in the header, the first is '{twice[0][:64]}'")


def _decimal(rows: list[list[str]], separator: str) -> str:
    """ "," where numbers are written so, which a file separated by commas cannot do."""
    if separator == ",":
        return "."
    cells = [cell for row in rows[:1_000] for cell in row]
    return "," if sum(map(_is(_COMMA), cells)) > sum(map(_is(_POINT), cells)) else "."


def _is(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda cell: pattern.fullmatch(cell) is not None
