"""The cells of a table, Parquet or CSV as programs export it: how that is written is found as a connector finds it."""

from __future__ import annotations

import csv
import itertools
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from pyarrow import types

from sovfed.clients.data.csv import SUFFIXES as CSV
from sovfed.clients.data.parquet import SUFFIXES as PARQUET
from sovfed.clients.data.parquet import Parquet
from sovfed.clients.data.tables.cells import as_text
from sovfed.clients.data.tables.dialect import look_at
from sovfed.clients.data.tables.report import Report
from sovfed.clients.data.tables.words import fold
from sovfed.federation.errors import DataError
from sovfed.federation.files import not_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from sovfed.federation.config import DataConfig

_DECIMAL: Final = re.compile(r"[<>≤≥]?\s*[-+]?[0-9]*,[0-9]+")
TABLES: Final = (*CSV, *PARQUET)
MAX_ROWS: Final = 100_000  # that are looked at
MAX_BYTES: Final = 1 << 28  # of a Parquet file's cells, of which many may share one long text
MAX_NAMES: Final = 10_000
_NAMES: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclass(frozen=True, repr=False)
class Sheet:
    """Names and rows of text cells, all without spaces around them. Parquet has no `encoding` and no `separator`."""

    names: tuple[str, ...]
    rows: list[list[str]]
    encoding: str
    separator: str
    decimal: str
    path: Path
    nested: tuple[str, ...] = ()  # columns of lists, whose cells are empty here

    def column(self, name: str) -> list[str]:
        position = self._places[name]
        return [row[position] for row in self.rows]

    def column_like(self, name: str) -> list[str]:
        """The cells of the column of that name, whatever the case of its letters."""
        return self.column(next(own for own in self.names if fold(own) == fold(name)))

    @property
    def said(self) -> str:
        """How the file was read."""
        if not self.encoding:
            return "read as Parquet"
        mark = "decimal comma" if self.decimal == "," else "decimal point"
        separator = _NAMES.get(self.separator, repr(self.separator))
        return f"read as {self.encoding.removesuffix('-sig')}, separated by {separator}, {mark}"

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}


def read_sheet(path: Path, written: DataConfig) -> Sheet:
    """The first 100,000 records of the table `path`; of a cell that is in `written.missing_words` "" is left.

    Raises DataError, with the line but never a value.
    """
    if not path.is_file():
        raise DataError(not_there(path))
    missing = {fold(word) for word in written.missing_words}

    def told(cells: Iterable[str | None]) -> list[str]:
        return [text if fold(text := (cell or "").strip()) not in missing else "" for cell in cells]

    return _of_parquet(path, told) if path.name.lower().endswith(PARQUET) else _of_csv(path, written, told)


def _of_csv(path: Path, written: DataConfig, told: Callable[[Iterable[str | None]], list[str]]) -> Sheet:
    dialect = look_at(path, written, ())
    _check_names(dialect.header, path)
    rows = []
    try:
        with path.open(encoding=dialect.encoding, newline="") as file:
            for _ in range(dialect.skipped):
                next(file, "")
            lines = csv.reader(file, delimiter=dialect.separator, strict=True)
            for row in itertools.islice(lines, MAX_ROWS):
                cells = told(row)
                if any(cells):  # spreadsheets leave empty rows behind
                    rows.append(_fitting(cells, len(dialect.header), dialect.skipped + lines.line_num, path))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: not readable as CSV: {type(error).__name__}") from error
    return Sheet(dialect.header, rows, dialect.encoding, dialect.separator, dialect.decimal, path)


def _of_parquet(path: Path, told: Callable[[Iterable[str | None]], list[str]]) -> Sheet:
    source = Parquet(path)
    names = tuple(source.header)
    _check_names(names, path)
    rows: list[list[str]] = []
    size_bytes = 0
    nested: tuple[str, ...] = ()
    for batch in source.batches(range(len(names)), [], Report(str(path))):
        nested = tuple(name for name, cells in zip(names, batch.cells, strict=True) if types.is_nested(cells.type))
        columns = [told(as_text(cells).to_pylist()) for cells in batch.cells]
        rows += [list(row) for row in zip(*columns, strict=True) if any(row)]
        size_bytes += sum(cells.nbytes for cells in batch.cells)
        if len(rows) >= MAX_ROWS or size_bytes > MAX_BYTES:
            break
    return Sheet(names, rows[:MAX_ROWS], "", "", source.decimal, path, nested)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The tables among `paths`, of a folder all that lie in it. Raises DataError."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(child for child in path.iterdir() if child.name.lower().endswith(TABLES))
        if not inside:
            raise DataError(f"{path}: no file in it ends in {', '.join(TABLES)}")
        files += inside
    return files


def together(sheets: Sequence[Sheet]) -> tuple[Sheet, dict[str, list[str]]]:
    """All records of `sheets` by the first one's names, and each other column with the files that lack it."""
    first, *others = sheets
    if not others:
        return first, {}
    places = [{fold(name): position for position, name in enumerate(sheet.names)} for sheet in sheets]
    shared = [name for name in first.names if name and all(fold(name) in own for own in places)]
    lacking = dict[str, list[str]]()
    for name in {fold(name): name for sheet in reversed(sheets) for name in reversed(sheet.names) if name}.values():
        if lack := [sheet.path.name for sheet, own in zip(sheets, places, strict=True) if fold(name) not in own]:
            lacking[name] = lack
    marks = {sheet.decimal for sheet in sheets}
    rows = [
        [_pointed(row[own[fold(name)]], sheet.decimal, marks) for name in shared]
        for sheet, own in zip(sheets, places, strict=True)
        for row in sheet.rows
    ]
    mark = first.decimal if len(marks) == 1 else "."
    nested = tuple(name for name in shared if any(name in sheet.nested for sheet in sheets))
    return Sheet(tuple(shared), rows, first.encoding, first.separator, mark, first.path, nested), lacking


def _pointed(cell: str, mark: str, marks: set[str]) -> str:
    """A number with a decimal point, where files differ in the mark; any other cell as it is."""
    if mark == "." or len(marks) == 1 or not _DECIMAL.fullmatch(cell):
        return cell
    return cell.replace(mark, ".")


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
