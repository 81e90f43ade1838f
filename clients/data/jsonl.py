"""Records as lines of JSON, plain or packed by xz: an object a line, a column of the task a key of it."""

from __future__ import annotations

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
SEEN: Final = 1 << 7  # first records whose keys are the header


class Jsonl:
    """The records of one file."""

    word = "line"
    decimal = "."

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path, self.where = path, str(path)
        first = [record for _, record in islice(self.objects(), SEEN)]
        keys = dict.fromkeys(key for record in first for key in record)
        self.header: Sequence[str] = tuple(keys)

    def batches(self, wanted: Sequence[int], numeric: Sequence[int], report: Report) -> Iterator[Batch]:
        records = self.objects(report)
        names = [self.header[place] for place in wanted]
        while rows := list(islice(records, ROWS)):
            lines = np.array([line for line, _ in rows], np.int64)
            cells = [
                cells_of([record.get(name) for _, record in rows], numeric=place in numeric)
                for place, name in zip(wanted, names, strict=True)
            ]
            yield Batch(cells, lines)

    def objects(self, report: Report | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number and object of each line; what is no object is told to `report`. Raises DataError."""
        try:
            with self._open() as file:
                for number, line in _lines(file, self.path):
                    record = _object(line)
                    if record is not None:
                        yield number, record
                    elif report is not None:
                        report.rows += 1
                        report.bad += 1
                        report.fault("", words.CELLS, [number])
        except (lzma.LZMAError, EOFError):
            raise DataError(
                f"{self.path}: no .xz file, one that is cut off, or one that needs over {MAX_MEMORY} bytes"
            ) from None
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _open(self) -> IO[bytes]:
        if not self.path.is_file():
            raise DataError(
                f"{self.path}: {'not a regular file' if self.path.exists() else 'no such file'}; check data.path"
            )
        if not self.path.name.endswith(".xz"):
            return self.path.open("rb")
        _unpack_bounded(self.path)
        return lzma.open(self.path, "rb")


def _unpack_bounded(path: Path) -> None:
    """Raise LZMAError if unpacking would take more memory than `MAX_MEMORY`: the file's head says how much."""
    with path.open("rb") as file:
        lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY).decompress(file.read(1 << 12), 1)


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise DataError(f"{path}, line {number}: over {MAX_LINE} bytes")
        if line.strip():
            yield number, line


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def open_jsonl(config: DataConfig, names: Iterable[str]) -> Jsonl:
    """The configured site's file. Raises DataError."""
    return Jsonl(file_of(config, SUFFIXES), names)


CONNECTOR: Final = connector(open_jsonl, SUFFIXES)
