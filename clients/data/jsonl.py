"""Records as lines of JSON, plain or packed by xz: an object a line, a column of the task a key of it."""

from __future__ import annotations

import io
import json
import lzma
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data.files import unreadable
from sovfed.clients.data.tables import words
from sovfed.clients.data.tables.connect import connector, file_of
from sovfed.clients.data.tables.source import Batch
from sovfed.clients.data.tables.values import cells_of
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from sovfed.clients.data.tables.report import Report
    from sovfed.federation.config import DataConfig

SUFFIXES: Final = (".jsonl.xz", ".ndjson.xz", ".jsonl", ".ndjson")
ROWS: Final = 1 << 10  # of a batch
MAX_LINE: Final = 1 << 24  # bytes of one record
MAX_MEMORY: Final = 1 << 27  # bytes that unpacking may take, which the file itself asks for
PACKED: Final = 1 << 16  # bytes that are unpacked at once
SEEN: Final = 1 << 7  # first records whose keys are the header


class Jsonl:
    """The records of one file."""

    word = "line"
    spells_lists = omits = True
    decimal = "."

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path, self.where = path, str(path)
        first = islice(self.objects(), SEEN)  # of which one is held at a time: each may be long
        self.header: Sequence[str] = tuple(dict.fromkeys(key for _, record in first for key in record))

    def batches(self, wanted: Sequence[int], numeric: Sequence[int], report: Report) -> Iterator[Batch]:
        names = [self.header[position] for position in wanted]
        for rows in self._blocks(names, report):
            lines = np.array([line for line, _ in rows], np.int64)
            cells = [
                cells_of([values[place] for _, values in rows], numeric=position in numeric)
                for place, position in enumerate(wanted)
            ]
            yield Batch(cells, lines)

    def objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number and object of each line that is one. Raises DataError."""
        return ((number, record) for number, _, record in self._records(None))

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of each line that is not blank. Raises DataError."""
        try:
            with self._open() as file:
                yield from _lines(file, self.path)
        except (lzma.LZMAError, EOFError):
            raise DataError(
                f"{self.path}: no .xz file, one that is cut off, or one that needs over {MAX_MEMORY} bytes"
            ) from None
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _blocks(self, names: Sequence[str], report: Report) -> Iterator[list[tuple[int, list[Any]]]]:
        """Line number and values of `ROWS` records at a time, or of fewer long ones."""
        rows, size_bytes = list[tuple[int, list[Any]]](), 0
        for number, size, record in self._records(report):
            rows.append((number, [record.get(name) for name in names]))
            size_bytes += size
            if len(rows) == ROWS or size_bytes >= MAX_LINE:
                yield rows
                rows, size_bytes = [], 0
        if rows:
            yield rows

    def _records(self, report: Report | None) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """As `objects`, with how many bytes each line has; what is no object is told to `report`."""
        for number, line in self.lines():
            record = object_in(line)
            if record is not None:
                yield number, len(line), record
            elif report is not None:
                report.rows += 1
                report.bad += 1
                report.fault("", words.CELLS, [number])

    def _open(self) -> IO[bytes]:
        if not self.path.is_file():
            raise DataError(
                f"{self.path}: {'not a regular file' if self.path.exists() else 'no such file'}; check data.path"
            )
        if not self.path.name.endswith(".xz"):
            return self.path.open("rb")
        return io.BufferedReader(_Unpacked(self.path))


class _Unpacked(io.RawIOBase):
    """What a packed file holds; LZMAError where a block of it, not only the first, asks for over `MAX_MEMORY` bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb")
        self._unpack = _unpacker()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        while True:
            packed = self._packed()
            if packed is None:
                return 0
            if content := self._unpack.decompress(packed, len(room)):
                room[: len(content)] = content
                return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _packed(self) -> bytes | None:
        """What is to be unpacked next, of the next stream after the end of one; None at the end of the file."""
        if not self._unpack.eof:
            packed = self._file.read(PACKED) if self._unpack.needs_input else b""
            if self._unpack.needs_input and not packed:
                raise EOFError
            return packed
        packed = self._unpack.unused_data.lstrip(b"\0")  # streams may be filled up with zeros
        while not packed:
            if not (packed := self._file.read(PACKED)):
                return None
            packed = packed.lstrip(b"\0")
        self._unpack = _unpacker()
        return packed


def _unpacker() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(f"{path}, line {number}: over {MAX_LINE} bytes")
        if line.strip():
            yield number, line


def object_in(line: bytes | str) -> dict[str, Any] | None:
    """The object of JSON in `line`; None if it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def open_jsonl(config: DataConfig, names: Iterable[str]) -> Jsonl:
    """The configured site's file. Raises DataError."""
    return Jsonl(file_of(config, SUFFIXES), names)


CONNECTOR: Final = connector(open_jsonl, SUFFIXES, reads=())
