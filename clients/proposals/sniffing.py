"""The cells of a CSV file as programs export it: how it is written is found as a training's connector finds it."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from sovfed.clients.data.tables.dialect import look_at
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

MAX_ROWS: Final = 100_000  # that are looked at
MAX_NAMES: Final = 10_000
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
        position = self._places[name]
        return [row[position] for row in self.rows]

    @property
    def said(self) -> str:
        """How the file was read."""
        mark = "decimal comma" if self.decimal == "," else "decimal point"
        separator = _NAMES.get(self.separator, repr(self.separator))
        return f"read as {self.encoding.removesuffix('-sig')}, separated by {separator}, {mark}"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}


def read_sheet(path: Path) -> Sheet:
    """The first 100,000 records of the CSV file `path`. Raises DataError, with the line but never a value."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    dialect = look_at(path, DataConfig(), ())
    _check_names(dialect.header, path)
    rows = []
    try:
        with path.open(encoding=dialect.encoding, newline="") as file:
            for _ in range(dialect.skipped):
                next(file, "")
            lines = csv.reader(file, delimiter=dialect.separator, strict=True)
            for row in itertools.islice(lines, MAX_ROWS):
                cells = [cell.strip() for cell in row]
                if any(cells):  # spreadsheets leave empty rows behind
                    rows.append(_fitting(cells, len(dialect.header), dialect.skipped + lines.line_num, path))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: not readable as CSV: {type(error).__name__}") from error
    return Sheet(dialect.header, rows, dialect.encoding, dialect.separator, dialect.decimal)


def _fitting(cells: list[str], width: int, line: int, path: Path) -> list[str]:
    """The cells without empty ones behind the last column. Raises DataError if they are not as many as columns."""
    if len(cells) < width or any(cells[width:]):
        raise DataError(f"{path.name}: line {line} has {len(cells)} cells, the header {width}")
    return cells[:width]


def _check_names(names: tuple[str, ...], path: Path) -> None:
    named = [name for name in names if name]
    if not named or len(names) > MAX_NAMES:
        raise DataError(f"{path.name}: {len(names)} columns in the header, expected 1 to {MAX_NAMES} with names")
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise DataError(f"{path.name}: {len(twice)} names stand twice in the header, the first is '{twice[0][:64]}'")
