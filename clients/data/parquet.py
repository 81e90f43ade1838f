"""Parquet files: a file, or a folder of one a site. Read a row group at a time, and only the columns that are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sovfed.clients.data.files import unreadable
from sovfed.clients.data.tables.connect import connector, file_of
from sovfed.clients.data.tables.source import Batch
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from sovfed.clients.data.tables.report import Report
    from sovfed.federation.config import DataConfig

SUFFIXES: Final = (".parquet", ".pq")
ROWS: Final = 1 << 14  # of a batch
MAX_GROUP: Final = 1 << 31  # bytes of the used columns of a row group
MAX_FOOTER: Final = 1 << 26


class Parquet:
    """The rows of one Parquet file."""

    word = "row"
    decimal = "."

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; check data.path")
        try:
            with self._open() as file:
                self.header: Sequence[str] = tuple(file.schema_arrow.names)
                self.expected = file.metadata.num_rows
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
                    yield Batch([batch.column(name) for name in names], lines)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: broken Parquet file ({type(error).__name__})") from None

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(
            self.path, memory_map=False, pre_buffer=False, buffer_size=1 << 16,
            thrift_string_size_limit=MAX_FOOTER, thrift_container_size_limit=1 << 20,
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


def open_parquet(config: DataConfig, names: Iterable[str]) -> Parquet:
    """The configured site's file. Raises DataError."""
    return Parquet(file_of(config, SUFFIXES))


CONNECTOR: Final = connector(open_parquet, SUFFIXES, reads=())
