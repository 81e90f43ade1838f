"""Parquet files: a file, or a folder of one a site. Read a row group at a time, and only the columns that are used."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from sovfed.clients.data.files import unreadable
from sovfed.clients.data.tables.connect import connector, file_of
from sovfed.clients.data.tables.source import Batch
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from sovfed.clients.data.tables.report import Lines, Report
    from sovfed.federation.config import DataConfig

SUFFIXES: Final = (".parquet", ".pq")
ROWS: Final = 1 << 14  # of a batch
MAX_BATCH: Final = 1 << 26  # bytes of its texts, or one row
MAX_GROUP: Final = 1 << 31  # bytes of the used columns of a row group
MAX_FOOTER: Final = 1 << 26


class Parquet:
    """The rows of one Parquet file."""

    word = "row"
    decimal = "."

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._texts: list[str] = []
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; check data.path")
        try:
            with self._open() as file:
                self.header: Sequence[str] = tuple(file.schema_arrow.names)
                self.expected = file.metadata.num_rows
                self._texts = _texts(file.metadata.schema)
        except OSError as error:
            raise unreadable(path, error) if error.strerror else DataError(f"{path}: no Parquet file") from error
        except pa.ArrowException:
            raise DataError(f"{path}: no Parquet file") from None

    def batches(self, wanted: Sequence[int], numeric: Sequence[int], report: Report) -> Iterator[Batch]:
        names = [self.header[position] for position in wanted]
        row = 1
        try:
            with self._open() as file:
                self._check(file, set(names))
                for batch in file.iter_batches(ROWS, columns=names, use_threads=False):
                    lines = np.arange(row, row + batch.num_rows, dtype=np.int64)
                    row += batch.num_rows
                    yield from _written_out([batch.column(name) for name in names], lines)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: broken Parquet file ({type(error).__name__})") from None

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.path, memory_map=False, pre_buffer=False, buffer_size=1 << 16,
            thrift_string_size_limit=MAX_FOOTER, thrift_container_size_limit=1 << 20, read_dictionary=self._texts,
        )  # fmt: skip

    def _check(self, file: pq.ParquetFile, names: set[str]) -> None:
        """Refuse a row group that would take too much memory, before it is read."""
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            columns = (group.column(position) for position in range(group.num_columns))
            size = sum(
                chunk.total_uncompressed_size for chunk in columns if chunk.path_in_schema.split(".")[0] in names
            )
            if size > MAX_GROUP:
                raise DataError(
                    f"{self.path}: row group {number} takes {size} bytes, at most {MAX_GROUP}; write smaller ones"
                )


def _texts(schema: pq.ParquetSchema) -> list[str]:
    """The names of the columns of texts, lists of them apart."""
    columns = (schema.column(position) for position in range(len(schema)))
    return [
        column.path for column in columns if column.physical_type == "BYTE_ARRAY" and not column.max_repetition_level
    ]


def _written_out(columns: list[pa.Array], lines: Lines) -> Iterator[Batch]:
    """Rows whose texts are each written out, as few at a time as `MAX_BATCH` lets.

    A file holds a text that many rows share once: one of 40 kB may stand for gigabytes of them.
    """
    size_bytes = np.zeros(len(lines), np.int64)
    for column in filter(_is_coded_text, columns):
        lengths = pc.fill_null(pc.binary_length(column.dictionary).take(column.indices), 0)
        size_bytes += lengths.to_numpy(zero_copy_only=False)
    cuts = np.flatnonzero(np.diff(np.cumsum(size_bytes) // MAX_BATCH)) + 1
    for start, end in pairwise([0, *cuts.tolist(), len(lines)]):
        parts = (column.slice(start, end - start) for column in columns)
        yield Batch([part.dictionary_decode() if _is_coded_text(part) else part for part in parts], lines[start:end])


def _is_coded_text(column: pa.Array) -> bool:
    if not types.is_dictionary(column.type):
        return False
    values = column.type.value_type
    return bool(types.is_string(values) or types.is_large_string(values) or types.is_binary(values))


def open_parquet(config: DataConfig, names: Iterable[str]) -> Parquet:
    """The configured site's file. Raises DataError."""
    return Parquet(file_of(config, SUFFIXES))


CONNECTOR: Final = connector(open_parquet, SUFFIXES, reads=())
