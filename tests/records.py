"""Records of a task with one array of inputs and one target: made from two arrays, and seen as two arrays again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Dataset, Records, table_of

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.federation.tasks.columns import Schema, Table

Array = npt.NDArray[Any]


def records_of(
    schema: Schema, inputs: Array, targets: Array, train: Array, test: Array, *, several_records: bool = True
) -> Records:
    """Records of which each is another person's."""
    return Records(table_of(schema, inputs, targets), np.arange(len(targets)), train, test, several_records)


class Unreadable:
    """`records`, read when they are asked for; those at the rows `bad` cannot be."""

    def __init__(self, records: Records, bad: tuple[int, ...]) -> None:
        self._records, self._bad = records, set(bad)
        self.persons, self.train, self.test = records.persons, records.train, records.test
        self.several_records, self.not_private = records.several_records, records.not_private

    def __len__(self) -> int:
        return len(self._records)

    def take(self, rows: Indices) -> Table:
        if self._bad.intersection(rows.tolist()):
            raise OSError("this record is cut short")
        return self._records.take(rows)


def inputs_of(records: Dataset) -> Array:
    """The one array of inputs as it is stored, [n, …]."""
    first, *_ = in_memory(records).columns.values()
    return first


def targets_of(records: Dataset) -> Array:
    """The one target as it is stored, [n]."""
    *_, last = in_memory(records).columns.values()
    return last


def in_memory(records: Dataset) -> Records:
    """The same, of which a test knows that the arrays are all there."""
    assert isinstance(records, Records)
    return records


def u_of(schema: Schema, inputs: Array) -> npt.NDArray[np.float64]:
    """(x − middle) / half width of the declared bounds, [n, f], by the definition."""
    low, high = (
        np.concatenate([np.full(column.size, getattr(column, end)) for column in schema.inputs])
        for end in ("low", "high")
    )
    middle, half = (low + high) / 2, (high - low) / 2
    u: npt.NDArray[np.float64] = (inputs.reshape(len(inputs), -1).astype(np.float64) - middle) / half
    return u
