"""A pandas data frame of raw columns as records: for notebooks and scripts, by the same rules as a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sovfed.clients.data import check
from sovfed.clients.data.tables import read_table
from sovfed.clients.data.tables.records import as_records, settle
from sovfed.clients.data.tables.source import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

    from sovfed.clients.data import Records
    from sovfed.clients.data.tables.report import Report
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task

CHUNK = 1 << 16  # rows


class Frame:
    """A data frame as a source of rows, which are counted from 1."""

    word, decimal = "row", "."

    def __init__(self, frame: pd.DataFrame, where: str) -> None:
        self.where, self._table = where, pa.Table.from_pandas(frame, preserve_index=False)
        self.header: Sequence[str] = self._table.column_names

    def batches(self, wanted: Sequence[int], numeric: Sequence[int], report: Report) -> Iterator[Batch]:
        first = 1
        for batch in self._table.to_batches(max_chunksize=CHUNK):
            yield Batch([batch.column(position) for position in wanted], np.arange(first, first + batch.num_rows))
            first += batch.num_rows


def records_of_frame(task: Task, frame: pd.DataFrame, config: DataConfig, where: str = "the data frame") -> Records:
    """The records in `frame`, by the task's schema and `config`'s rules. Raises DataError."""
    read = read_table(task.schema, Frame(frame, where), config)
    settle(task.schema, config, read)
    records = as_records(task, read, config)
    check(records, task.schema, where)
    return records
