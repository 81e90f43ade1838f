"""How a text table is written: encoding, separator, decimal mark, and where its header stands. Looked at, and said.

The whole file is looked at once for its encoding and quotes, its first lines for the rest.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.data.files import unreadable
from sovfed.clients.data.tables.words import fold
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from sovfed.federation.config import DataConfig

PIECE: Final = 1 << 17  # bytes that are looked at together: they stay in the processor's cache
QUOTE: Final = ord('"')
MAX_BYTES: Final = 1 << 40
HEAD: Final = 1 << 16  # bytes that separator and decimal mark are told from
MAX_HEADER: Final = 1 << 20  # bytes of the first lines
MAX_ROWS: Final = 200  # that are looked at
SEPARATORS: Final = {"tab": "\t"}
TRIED: Final = (",", ";", "\t", "|")
BOMS: Final = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
OTHERS: Final = (
    (b"PK\x03\x04", "an Excel or other zipped file: save it as 'CSV UTF-8'"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file: save it as 'CSV UTF-8'"),
    (b"PAR1", "a Parquet file: data.source=parquet reads it"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"SQLite format 3\x00", "an SQLite database: data.source=sql reads it"),
)
_SEP: Final = re.compile(r"sep=(.)\s*", re.IGNORECASE)
_END: Final = re.compile(r"\r\n?|\n")
_LINE: Final = re.compile(r"[^\r\n]*(?:\r\n?|\n|\Z)")
_EMPTY: Final = re.compile(r"(?:[ \t;,|]*(?:\r\n?|\n))*(?:[ \t;,|]*\Z)?")
_NOT_WINDOWS: Final = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
_CONTROLS: Final = bytes(code for code in range(32) if code not in b"\t\n\v\f\r")
NO_TEXT: Final = 0.02  # share of control characters, of which a text has hardly any and an image or archive a tenth
_POINT: Final = re.compile(r"[+-]?[0-9]*\.[0-9]+(?:[eE][+-]?[0-9]+)?")
_COMMA: Final = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Dialect:
    """How a file is written."""

    encoding: str
    separator: str
    header: tuple[str, ...]
    skipped: int  # lines before the first record
    cells: int  # of a row, at least those of the header
    quoted: bool  # whether a quote stands anywhere
    decimal: str
    notes: tuple[str, ...]
    expected: int  # records, by the length of the first
    guessed: tuple[str, ...] = ()  # settings that were told from the records: one person's row may change them


def look_at(path: Path, config: DataConfig, names: Iterable[str]) -> Dialect:
    """How the text table at `path` is written; `names` are columns that its header should have. Raises DataError."""
    try:
        encoding, quoted = _encoding(path, config.encoding)
        with path.open("rb") as file:
            start = file.read(HEAD)
            more = file.read(MAX_HEADER - HEAD) if quoted or b"\n" not in start else b""
            head = _decoded(start + more, encoding, path)
    except OSError as error:
        raise unreadable(path, error) from error
    declared = None if config.separator == "auto" else SEPARATORS.get(config.separator, config.separator)
    body, from_line, skipped = _below(head)
    declared = declared or from_line
    separator = declared or _separator(body, names)
    rows, used = _rows(body[:HEAD] if len(body) > HEAD and '"' not in body[:HEAD] else body, separator, path)
    if not rows:
        raise DataError(f"{path}: the file has no header")
    header = tuple(name.strip() for name in rows[0])
    decimal = config.decimal if config.decimal != "auto" else _decimal(rows[1:], separator)
    notes = _notes(encoding, config, separator, decimal)
    cells = max(
        [len(header), *(len(row) for row in rows[1:] if len(row) > len(header) and not any(row[len(header) :]))]
    )
    guessed = _guessed(config, encoding, separator, decimal, wide=cells > len(header))
    expected = path.stat().st_size * (start.count(b"\n") or start.count(b"\r")) // len(start)
    return Dialect(encoding, separator, header, skipped + used, cells, quoted, decimal, notes, expected, guessed)


def _below(head: str) -> tuple[str, str | None, int]:
    """What follows a line `sep=;` and empty lines, the separator that such a line gives, and how many there were."""
    first = _LINE.match(head)
    declaration = _SEP.fullmatch(first[0].rstrip("\r\n").strip('"')) if first else None
    start = first.end() if first and declaration else 0
    empty = _EMPTY.match(head, start)
    end = empty.end() if empty else start
    return head[end:], declaration[1] if declaration else None, bool(declaration) + len(_END.findall(head, start, end))


def _encoding(path: Path, declared: str | None) -> tuple[str, bool]:
    """The file's encoding, and whether it has a quote. UTF-8 and else Windows' own, unless it is declared."""
    if not path.is_file():
        raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; check data.path")
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"{path}: the file is empty; check data.path")
    if size > MAX_BYTES:
        raise DataError(f"{path}: {size} bytes, expected {MAX_BYTES} at most")
    with path.open("rb") as file:
        start = file.read(HEAD)
        for magic, description in OTHERS:
            if start.startswith(magic):
                raise DataError(f"{path}: {description}")
        if declared is None:
            declared = next((name for bom, name in BOMS if start.startswith(bom)), None) or _without_bom(start[:64])
            if declared is None and len(start.translate(None, _CONTROLS)) < (1 - NO_TEXT) * len(start):
                raise DataError(f"{path}: this is no text, so no CSV file; check data.path and data.source")
        file.seek(0)
        return _scan(file, declared, path)


def _scan(file: io.BufferedReader, declared: str | None, path: Path) -> tuple[str, bool]:
    """One pass over all bytes: are they UTF-8, or Windows-1252, and is each quote closed?"""
    if declared is not None:
        _known(declared, path)
    decoder, windows, quotes = _Utf8(), True, 0
    buffer = bytearray(PIECE)
    while count := file.readinto(buffer):
        piece = buffer if count == PIECE else buffer[:count]
        quotes += int(np.count_nonzero(np.frombuffer(piece, np.uint8) == QUOTE)) if b'"' in piece else 0
        if declared is None and not decoder.takes(piece):
            windows = windows and not any(bytes([code]) in piece for code in _NOT_WINDOWS)
    encoding = declared or ("utf-8" if decoder.done() else "cp1252" if windows else "latin-1")
    if quotes % 2 and not encoding.startswith("utf-16"):
        raise DataError(f"{path}: malformed CSV: a quote is not closed; within a quoted cell a quote is written twice")
    return encoding, quotes > 0


class _Utf8:
    """Whether bytes that come in pieces are UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._plain = self._valid = True

    def takes(self, piece: bytes | bytearray) -> bool:
        """Take a further piece; False if it is more than ASCII."""
        self._plain = self._plain and piece.isascii()
        if not self._plain and self._valid:
            self._feed(piece)
        return self._plain

    def done(self) -> bool:
        if self._valid and not self._plain:
            self._feed(b"", final=True)
        return self._valid

    def _feed(self, piece: bytes | bytearray, *, final: bool = False) -> None:
        try:
            self._decoder.decode(piece, final)
        except UnicodeDecodeError:
            self._valid = False


def _known(encoding: str, path: Path) -> None:
    try:
        codecs.lookup(encoding)
        "".encode(encoding)
    except (LookupError, ValueError):
        raise DataError(f"{path}: data.encoding is no known text encoding; try utf-8, cp1252 or utf-16") from None


def _without_bom(start: bytes) -> str | None:
    """UTF-16 of Western letters has every other byte zero."""
    even, odd = start[0::2], start[1::2]
    if len(odd) > 3 and odd.count(0) > len(odd) * 0.7 and not even.count(0):
        return "utf-16-le"
    return "utf-16-be" if len(even) > 3 and even.count(0) > len(even) * 0.7 and not odd.count(0) else None


def _decoded(content: bytes, encoding: str, path: Path) -> str:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        return decoder.decode(content)
    except UnicodeError:
        raise DataError(f"{path}: not {encoding} text; say how it is written with data.encoding") from None


def _separator(body: str, names: Iterable[str]) -> str:
    """The separator by which most of the header's names are known, else the one that makes most of them."""
    expected = {fold(name) for name in names}
    line = body.split("\n", 1)[0]

    def fit(separator: str) -> tuple[int, int]:
        try:
            cells = next(csv.reader([line], delimiter=separator), [])
        except csv.Error:
            return 0, 0
        return sum(fold(cell) in expected for cell in cells), len(cells)

    return max(TRIED, key=fit)


def _rows(body: str, separator: str, path: Path) -> tuple[list[list[str]], int]:
    """The header and the first whole records, and how many lines the header takes."""
    rows, used = _read(body[:HEAD], separator, path)
    if len(rows) <= MAX_ROWS and len(body) > HEAD:
        rows, used = _read(body[:MAX_HEADER], separator, path)
    if len(rows) > 2 and len(body) >= HEAD:
        rows.pop()  # may be cut
    return rows, used


def _read(text: str, separator: str, path: Path) -> tuple[list[list[str]], int]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows: list[list[str]] = []
    used = 0
    try:
        for row in reader:
            used = used or reader.line_num
            rows.append(row)
            if len(rows) > MAX_ROWS:
                break
    except csv.Error:
        if not rows:
            raise DataError(f"{path}, line {reader.line_num}: malformed CSV in its header") from None
    return rows, used


def _decimal(rows: Sequence[Sequence[str]], separator: str) -> str:
    """The mark that the first rows' numbers have; a comma only where it does not separate cells."""
    if separator == ",":
        return "."
    cells = [cell.strip() for row in rows for cell in row]
    comma, point = (sum(mark.fullmatch(cell) is not None for cell in cells) for mark in (_COMMA, _POINT))
    return "," if comma > point or (comma == point == 0 and separator == ";") else "."


def _guessed(config: DataConfig, encoding: str, separator: str, decimal: str, *, wide: bool) -> tuple[str, ...]:
    """What to declare before a private run: all that one person's row could have changed for the others' rows.

    What is taken unless a record says otherwise (UTF-8, a comma between semicolons, else a point) needs no word. A
    wrong mark makes rows faulty, never other values, so it matters only where faulty rows are left out.
    """
    marked = encoding in ("utf-8", *(name for _, name in BOMS))  # by a mark before the header
    settings = [] if config.encoding or marked else [f"data.encoding={encoding}"]
    if config.bad_rows == "quarantine":
        usual = "," if separator == ";" else "."
        settings += [f"data.decimal='{decimal}'"] if config.decimal == "auto" and decimal != usual else []
        settings += ["rows with no more cells than the header"] if wide else []
    return tuple(settings)


def _notes(encoding: str, config: DataConfig, separator: str, decimal: str) -> tuple[str, ...]:
    shown = {"\t": "tab"}.get(separator, f"'{separator}'")
    guess = (
        "" if config.encoding or encoding.startswith("utf") else "; if letters are wrong, say how with data.encoding"
    )
    notes = [f"read as {encoding}{guess}"] if encoding != "utf-8" or config.encoding else []
    notes += [f"separator {shown}"] if separator != "," else []
    return (*notes, *(["decimal comma"] if decimal == "," else []))
