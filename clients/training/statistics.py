"""One institution's share of a table of statistics: the exact sum over its persons, before noise.

Every sum is a whole number of 2^-30: a person's rows weigh ⌊2^30 / rows⌋ each, so that sums do not depend on the order,
and what a person adds depends on that person's rows alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.statistics.question import measured
from sovfed.federation.tasks.columns import CODES, NUMBERS, REFUSE

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.clients.data import Dataset, Indices
    from sovfed.federation.statistics.question import Block, Question
    from sovfed.federation.tasks.columns import Column, Schema, Table

WEIGHT: Final = 1 << 30  # of a person
ROWS: Final = 1 << 16  # at once; their weights add up to less than 2^53


def totals(records: Dataset, schema: Schema, question: Question) -> tuple[npt.NDArray[np.float64], int]:
    """What the persons of `records`, trained on or held out, add to the vector of `question`, shape [size].

    Also how many records add nothing, since they cannot be read: no other adds less for them.
    """
    rows = np.sort(np.concatenate([records.train, records.test]))
    _, owners, counts = np.unique(records.persons[rows], return_inverse=True, return_counts=True)
    weights = (WEIGHT // counts)[owners]
    total, failed = np.zeros(question.size, np.int64), 0
    for start in range(0, len(rows), ROWS):
        failed += _add_rows(total, records, rows[start : start + ROWS], weights[start : start + ROWS], schema, question)
    vector: npt.NDArray[np.float64] = total / WEIGHT
    for place, block in enumerate(question.blocks[: len(question.columns)] if question.sites else ()):
        cells = vector[block.start : block.end]
        vector[question.between + place] = cells @ cells / (2 * vector[0]) if vector[0] else 0.0
    return vector, failed


def _add_rows(
    total: npt.NDArray[np.int64], records: Dataset, rows: Indices, weights: npt.NDArray[np.int64],
    schema: Schema, question: Question,
) -> int:  # fmt: skip
    """Add the records at `rows` to `total`, in halves down to those that cannot be read; how many those are."""
    try:
        part = np.zeros_like(total)
        _add(part, _counted(records, rows, schema, question), weights, schema, question)
    except Exception:  # one record's doing, whatever it is
        if len(rows) == 1:
            return 1
        middle = len(rows) // 2
        return sum(
            _add_rows(total, records, rows[half], weights[half], schema, question)
            for half in (slice(middle), slice(middle, None))
        )
    total += part
    return 0


def _counted(records: Dataset, rows: Indices, schema: Schema, question: Question) -> Table:
    """The records at `rows`, where it can be of what is counted alone: no image is decoded to count its person.

    So one that cannot be decoded does not take all persons of its institution out of the sum.
    """
    asked = {NUMBERS, CODES, *(column.name for block in question.blocks for column in block.columns)}
    names, columns = asked & schema.stored().keys(), getattr(records, "columns", None)
    if isinstance(columns, Mapping) and names <= columns.keys():
        return {name: columns[name][rows] for name in names}
    return records.take(rows)


def _add(
    total: npt.NDArray[np.int64], table: Table, weights: npt.NDArray[np.int64], schema: Schema, question: Question
) -> None:
    total[0] += weights.sum()
    for block in question.blocks:
        places, cells = np.zeros(len(weights), np.int64), 1
        for column, count in zip(block.columns, block.shape, strict=True):
            places = places * count + _cells(column, _values(column, table, schema), question)
            cells *= count
        sums = np.bincount(places, weights, minlength=cells)
        total[block.start : block.end] += sums.astype(np.int64)
        if block.moments:
            total[block.end : block.end + 2] += _moments(block, table, weights, schema)


def _cells(column: Column, values: npt.NDArray[np.float64], question: Question) -> npt.NDArray[np.int64]:
    """The number of the cell that each value is in."""
    last = question.count(column) - 1
    absent = np.isnan(values) | (values < 0 if not measured(column) else False)
    if measured(column):
        low, high = column.bounds
        own = last if column.missing == REFUSE else last - 1
        cells = np.clip(np.floor((np.where(absent, low, values) - low) / (high - low) * question.bins), 0, own)
    else:
        cells = np.clip(np.where(absent, 0, values), 0, last)
    return np.where(absent, last, cells).astype(np.int64)


def _moments(block: Block, table: Table, weights: npt.NDArray[np.int64], schema: Schema) -> npt.NDArray[np.int64]:
    """Σ weight·v and Σ weight·v² in units of a weight, each cut to a whole number; 0 for what is missing."""
    low, high = block.columns[0].bounds
    values = _values(block.columns[0], table, schema)
    v = np.nan_to_num(np.clip((values - low) / (high - low) - 0.5, -0.5, 0.5))
    return np.array([np.trunc(weights * power).astype(np.int64).sum() for power in (v, v * v)])


def _values(column: Column, table: Table, schema: Schema) -> npt.NDArray[np.float64]:
    """The column's stored values; NaN, or −1 of a category, where one is missing."""
    if column in schema.numbers:
        values = table[NUMBERS][:, schema.numbers.index(column)]
    elif column in schema.codes:
        values = table[CODES][:, schema.codes.index(column)]
    else:
        values = table[column.name]
    return values.reshape(len(values)).astype(np.float64)
