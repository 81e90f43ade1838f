"""A text table (CSV) as batches of cells: read by Arrow, and only the columns that are used.

Arrow finds where records end, by quotes: else it may miss that the last block begins in a cell. Where a cell that is to
be a number is none, the file is read in pieces, so that an odd cell costs its piece alone: a piece without quotes ends
where a line does. From the first quote on such a column is text.

Lines are counted as a spreadsheet counts its rows: a quoted cell with line breaks in it is one.
"""

from __future__ import annotations

import codecs
import csv
import itertools
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from sovfed.clients.data.files import unreadable
from sovfed.clients.data.tables import words
from sovfed.clients.data.tables.dialect import look_at
from sovfed.clients.data.tables.source import Batch, Restart
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
    from pathlib import Path

    from sovfed.clients.data.tables.dialect import Dialect
    from sovfed.clients.data.tables.report import Report
    from sovfed.clients.data.tables.source import Cells
    from sovfed.federation.config import DataConfig

PIECE: Final = 1 << 20  # bytes, and the rest of their last line, that are read by themselves
ENCODINGS: Final = frozenset({"utf-8", "utf-8-sig", "ascii", "cp1252", "iso8859-1", "iso8859-15"})  # ASCII is itself
BLOCK: Final = 1 << 18  # bytes that Arrow parses at once, of which it reads up to 32 ahead; a record must fit
TOGETHER: Final = 8  # blocks that are decoded together
LARGER: Final = 16  # times, for a record that does not fit
LARGE_BLOCK: Final = 1 << 25
FEW: Final = 3  # columns that are found one by one not to be plain numbers; then all are read as text
MAX_ODD: Final = 100_000  # rows with another number of cells than the header
MAX_ODD_BYTES: Final = 1 << 26
_TYPED: Final = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "-", ".", "?")


class Delimited:
    """The rows of one text file."""

    word = "line"

    def __init__(self, path: Path, config: DataConfig, names: Iterable[str]) -> None:
        self.dialect = look_at(path, config, names)
        self.path, self.where = path, str(path)
        self.header: Sequence[str] = self.dialect.header
        self.decimal, self.guessed, self.expected = self.dialect.decimal, self.dialect.guessed, self.dialect.expected
        self._apart = False  # whether pieces are read by themselves, since cells that are to be numbers are none
        self._text = set[int]()  # columns with such cells after the first quote
        self._block = BLOCK
        self._before = 0  # lines before those that Arrow counts
        self._odd: list[tuple[int, list[str]]] = []  # rows with cells too many or too few, by their number
        self._odd_bytes = 0

    def batches(self, wanted: Sequence[int], numeric: Sequence[int], report: Report) -> Iterator[Batch]:
        """The file's rows, those with another number of cells last."""
        if not report.notes:
            report.notes += self.dialect.notes
        self._odd, self._odd_bytes = [], 0
        row = 0
        try:
            for columns in self._columns(wanted, numeric):
                lines = self._lines(row, len(columns[0]))
                row += len(columns[0])
                yield Batch(columns, lines)
                del columns  # before the next ones are there
        except OSError as error:
            raise unreadable(self.path, error) from error
        except (UnicodeDecodeError, pa.ArrowInvalid) as error:
            self._learn(str(error), numeric)
        finally:
            _pool().release_unused()
        if odd_rows := self._rest(wanted, report):
            yield odd_rows

    def _columns(self, wanted: Sequence[int], numeric: Sequence[int]) -> Iterator[Sequence[Cells]]:
        """The columns of some rows after the other."""
        start = (yield from self._pieces(wanted, numeric)) if self._apart else 0
        if start and start >= self.path.stat().st_size:
            return
        options = self._options(
            wanted, set(numeric) - self._text, 0 if start else self.dialect.skipped, self._block,
            quoted=self.dialect.quoted,
        )  # fmt: skip
        with pa.OSFile(str(self.path)) as file:
            file.seek(start)
            with arrow_csv.open_csv(file, *options, memory_pool=_pool()) as reader:
                yield from _joined(reader, TOGETHER if self._block == BLOCK else 1)

    def _pieces(self, wanted: Sequence[int], numeric: Sequence[int]) -> Generator[Sequence[Cells], None, int]:
        """The columns of pieces without quotes; the byte after them, 0 if there are none."""
        with self.path.open("rb") as file:
            start, rows = _start(file, self.dialect), 0
            self._before = self.dialect.skipped if start else 0
            while start and (content := file.read(PIECE) + file.readline(PIECE)):
                whole = content.endswith(b"\n") or not file.peek(1)
                if not whole or (self.dialect.quoted and b'"' in content):
                    break
                for batch in self._parsed(content, wanted, numeric):
                    rows += batch.num_rows
                    yield batch.columns
                    del batch
                start += len(content)
                self._before = self.dialect.skipped + rows + len(self._odd)
        return start

    def _parsed(self, content: bytes, wanted: Sequence[int], numeric: Sequence[int]) -> list[pa.RecordBatch]:
        """Whole lines, with columns of `numeric` that do not only hold numbers as text. Raises ArrowInvalid."""
        text, odd, odd_bytes = set[int](), len(self._odd), self._odd_bytes
        while True:
            options = self._options(wanted, set(numeric) - text, 0, len(content) + 1, quoted=False)
            try:
                table = arrow_csv.read_csv(pa.BufferReader(content), *options, memory_pool=_pool())
            except pa.ArrowInvalid as error:
                if not (more := _no_numbers(str(error), text, numeric)):
                    raise
                text |= more
                del self._odd[odd:]  # which comes again
                self._odd_bytes = odd_bytes
            else:
                return [batch for batch in table.to_batches() if batch.num_rows]

    def _options(
        self, wanted: Sequence[int], numeric: Collection[int], skipped: int, block: int, *, quoted: bool
    ) -> tuple[arrow_csv.ReadOptions, arrow_csv.ParseOptions, arrow_csv.ConvertOptions]:
        names = [f"c{position}" for position in range(self.dialect.cells)]
        kinds = {names[position]: pa.float64() if position in numeric else pa.string() for position in wanted}
        encoding = "utf8" if self.dialect.encoding in ("utf-8", "utf-8-sig") else self.dialect.encoding
        return (
            arrow_csv.ReadOptions(
                use_threads=False, column_names=names, skip_rows=skipped, block_size=block, encoding=encoding,
            ),
            arrow_csv.ParseOptions(
                delimiter=self.dialect.separator, newlines_in_values=quoted, ignore_empty_lines=False,
                quote_char='"' if quoted else False, invalid_row_handler=self._keep,
            ),
            arrow_csv.ConvertOptions(
                column_types=kinds, include_columns=list(kinds), null_values=list(_TYPED), strings_can_be_null=False,
                quoted_strings_can_be_null=True, decimal_point=self.decimal, check_utf8=True,
            ),
        )  # fmt: skip

    def _keep(self, row: arrow_csv.InvalidRow) -> str:
        """Put a row with another number of cells aside."""
        self._odd_bytes += len(row.text or "")
        if len(self._odd) >= MAX_ODD or self._odd_bytes > MAX_ODD_BYTES:
            return "error"
        try:
            cells = next(csv.reader([row.text or ""], delimiter=self.dialect.separator), [])
        except csv.Error:  # a cell over csv's own bound
            cells = ["?"] * (len(self.header) + 1)
        self._odd.append((self._before + (row.number or 0), cells))
        return "skip"

    def _lines(self, row: int, count: int) -> np.typing.NDArray[np.int64]:
        """The lines of `count` rows from the `row`-th on, counting those that were put aside."""
        first = self.dialect.skipped + 1
        rows = np.arange(row, row + count, dtype=np.int64)
        if self._odd:
            aside = np.array([number for number, _ in self._odd]) - first - np.arange(len(self._odd))
            rows += np.searchsorted(aside, rows, side="right")
        return rows + first

    def _rest(self, wanted: Sequence[int], report: Report) -> Batch | None:
        """The rows put aside that have empty cells too many; the others are told."""
        size = len(self.header)
        fits: list[tuple[int, list[str]]] = []
        for line, cells in self._odd:
            if len(cells) >= size and not any(cell.strip() for cell in cells[size:]):
                fits.append((line, cells[:size]))
            elif any(cell.strip() for cell in cells):
                report.rows += 1
                report.bad += 1
                report.fault("", words.CELLS, [line])
            else:
                report.empty += 1
        self._odd = []
        if not fits:
            return None
        cells_by_column = [pa.array([cells[position] for _, cells in fits], pa.string()) for position in wanted]
        return Batch(cells_by_column, np.array([line for line, _ in fits], np.int64))

    def _learn(self, error: str, numeric: Sequence[int]) -> None:
        """Read the file in another way, or say that it cannot be. Arrow's own words hold values: they go nowhere."""
        if more := _no_numbers(error, self._text, numeric):
            self._text |= more if self._apart else set()
            self._apart = True
            raise Restart
        if "straddling" in error and self._block < LARGE_BLOCK:
            self._block *= LARGER
            raise Restart
        if len(self._odd) >= MAX_ODD or self._odd_bytes > MAX_ODD_BYTES:
            raise DataError(f"{self.path}: over {MAX_ODD} rows have another number of cells than the header")
        if "straddling" in error:
            raise DataError(f"{self.path}: a record has over {LARGE_BLOCK} bytes, or a quote is not closed")
        raise DataError(f"{self.path}: malformed CSV, or not {self.dialect.encoding} text (data.encoding)")


def _start(file: BinaryIO, dialect: Dialect) -> int:
    """The byte after the lines above the records; 0 if bytes do not tell where a line ends."""
    if codecs.lookup(dialect.encoding).name not in ENCODINGS:
        return 0
    content = b"".join(file.readline(PIECE) for _ in range(dialect.skipped))
    plain = content.endswith(b"\n") and content.count(b"\n") == dialect.skipped
    return len(content) if plain and content.count(b"\r") == content.count(b"\r\n") else 0


def _no_numbers(error: str, text: Collection[int], numeric: Sequence[int]) -> set[int]:
    """Columns that are to be read as text beside those in `text`, after Arrow's `error`; none if that was another."""
    if "conversion error" not in error or "UTF8" in error:
        return set()
    column = error.partition("#")[2].partition(":")[0]
    return ({int(column)} if column.isdecimal() and len(text) < FEW else set(numeric)) - set(text)


def _joined(reader: arrow_csv.CSVStreamingReader, together: int) -> Iterator[Sequence[Cells]]:
    """The columns of several blocks at once, since each batch costs some calls a column; nothing is moved."""
    full = (block for block in reader if block.num_rows)
    while blocks := list(itertools.islice(full, together)):
        columns = pa.Table.from_batches(blocks).columns
        del blocks  # a batch takes as much as what it is made of
        yield columns
        del columns


@cache
def _pool() -> pa.MemoryPool:
    """Where blocks lie: jemalloc's pool if there is one, which keeps least of what was freed for later."""
    return pa.jemalloc_memory_pool() if "jemalloc" in pa.supported_memory_backends() else pa.default_memory_pool()
