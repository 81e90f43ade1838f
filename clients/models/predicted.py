"""The predictions of a model for each row of a table, as a table in CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data.chosen import for_prediction
from sovfed.clients.data.tables.prediction import place_of, read_for_prediction
from sovfed.federation.errors import DataError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sovfed.federation.models.outputs import Predictions
    from sovfed.federation.models.saved import LoadedModel
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Table

FORMULA: Final = re.compile(r"[=@\t\r]|[+-](?![0-9.,]*$)")  # how a spreadsheet's formulas begin, but for numbers


def table_of(loaded: LoadedModel, table: Path, keep: str, settings: Sequence[str] = ()) -> str:
    """The predictions for each row of `table`, in CSV, with its column `keep` or the line.

    `settings` are those of the group data that say how the table is written; days may be written either way without.
    """
    blocks, rows = _read(loaded.task, table, keep, settings)
    parts = [loaded.predict(block) for block in blocks]
    return _csv(keep or "line", rows, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def _read(task: Task, path: Path, keep: str, settings: Sequence[str]) -> tuple[Iterator[Table], list[str]]:
    """The inputs, some rows after the other, and of each row its text in column `keep`, or its line. Raises DataError.

    Images, which the table names, lie beside it; they are decoded a batch at a time.
    """
    schema, config = dataclasses.replace(task.schema, person=""), for_prediction(settings, keep)
    place = place_of(path, schema)
    if place["source"] == "images":
        from sovfed.clients.data.images import to_predict

        read, images = to_predict(schema, dataclasses.replace(config, **place))  # type: ignore[arg-type]
        starts = range(0, max(len(images), 1), task.evaluation_batch)
        blocks = (images.take(np.arange(len(images))[start : start + task.evaluation_batch]) for start in starts)
    else:
        read = read_for_prediction(schema, path, config)
        blocks = (table for table in [read.table])
    if keep and read.persons is not None:
        return blocks, read.persons.to_pylist()
    return blocks, [] if read.lines is None else list(map(str, read.lines.tolist()))


def _csv(first: str, rows: list[str], predictions: Predictions) -> str:
    if any(values.ndim > 1 for values in predictions.values()):
        raise DataError("this model's outputs are arrays: use LoadedModel.outputs in Python")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, [first, *predictions]))
    for row, *values in zip(rows, *predictions.values(), strict=True):
        writer.writerow(map(_cell, [row, *values]))
    return text.getvalue()


def guarded(text: str) -> str:
    """`text`, a table that others' code has printed, without what steers a terminal or is a formula. DataError."""
    told = io.StringIO()
    writer = csv.writer(told, lineterminator="\n")
    try:
        for row in csv.reader(io.StringIO(text)):
            shown = (visible(cell, keep="\n") for cell in row)
            writer.writerow(cell if _is_number(cell) else _cell(cell) for cell in shown)
    except csv.Error as error:
        raise DataError(f"the task's code printed no table: {error}") from error
    return told.getvalue()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _cell(value: Any) -> str:
    """A number, or a word that no spreadsheet takes for a formula: words come from whoever made the task."""
    if not isinstance(value, str):
        return f"{float(value):.6g}"
    return f"'{value}" if FORMULA.match(value) else value
