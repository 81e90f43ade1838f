"""The predictions of a model for each row of a table, as a table in CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from sovfed.clients.data.chosen import for_prediction
from sovfed.clients.data.tables import refuse
from sovfed.clients.data.tables.prediction import place_of, read_for_prediction
from sovfed.clients.data.tables.report import MAX_LINES
from sovfed.federation.errors import DataError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sovfed.clients.data import Indices
    from sovfed.clients.data.tables import TableRead
    from sovfed.clients.data.tables.report import Lines
    from sovfed.federation.config import DataConfig
    from sovfed.federation.models.outputs import Predictions
    from sovfed.federation.models.saved import LoadedModel
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Schema, Table

FORMULA: Final = re.compile(r"[=@\t\r]|[+-](?![0-9.,]*$)")  # how a spreadsheet's formulas begin, but for numbers


class Predicted(NamedTuple):
    """The predictions in CSV, a line for each row of a table, and what is wrong with the rows that have none."""

    text: str
    faults: str = ""


class _Rows(NamedTuple):
    """Of each row of a table its text in the column that is carried through, or its line, and whether it is sound."""

    names: list[str]
    sound: list[bool]


def table_of(
    loaded: LoadedModel, table: Path, keep: str, settings: Sequence[str] = (), *, skip_bad: bool = False
) -> Predicted:
    """The predictions for each row of `table`, with its column `keep` or the line. Raises DataError.

    `settings` are those of the group data that say how the table is written; days may be written either way without.
    With `skip_bad` a row at fault has empty cells for its predictions, while a table of nothing else is refused.
    """
    blocks, rows, faults = _read(loaded.task, table, keep, settings, skip_bad)
    parts = [loaded.predict(block) for block in blocks]
    predictions = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Predicted(_csv(keep or "line", rows, predictions), faults)


def counted(text: str) -> tuple[int, int]:
    """How many rows the predictions `text` are for, and how many of them have none."""
    rows = [any(cells[1:]) for cells in csv.reader(io.StringIO(text))][1:]
    return len(rows), rows.count(False)


def _read(
    task: Task, path: Path, keep: str, settings: Sequence[str], skip_bad: bool
) -> tuple[Iterator[Table], _Rows, str]:
    """The inputs of sound rows, some after the other, then all rows, and what is wrong with the others. DataError.

    Images, which the table names, lie beside it; they are decoded a batch at a time.
    """
    schema, config = dataclasses.replace(task.schema, person=""), for_prediction(settings, keep)
    place = place_of(path, schema)
    if place["source"] == "images":
        from sovfed.clients.data.images import to_predict

        of_images = dataclasses.replace(config, **place)  # type: ignore[arg-type]
        read, images = to_predict(schema, of_images, keep=skip_bad)
        rows, faults = _sound(read, schema, config) if skip_bad else (np.arange(len(images)), "")
        starts = range(0, max(len(rows), 1), task.evaluation_batch)
        blocks = (images.take(rows[start : start + task.evaluation_batch]) for start in starts)
    else:
        read = read_for_prediction(schema, path, config, keep=skip_bad)
        rows, faults = _sound(read, schema, config) if skip_bad else (np.arange(len(_lines(read))), "")
        sound = {name: values[rows] for name, values in read.table.items()} if faults else read.table
        blocks = (table for table in [sound])
    return blocks, _rows(read, keep, rows) if faults else _Rows(_names(read, keep), [True] * len(rows)), faults


def _sound(read: TableRead, schema: Schema, config: DataConfig) -> tuple[Indices, str]:
    """The rows in which the report names no fault, and all faults. Raises DataError if none is sound."""
    report = read.report
    refuse(report, schema, dataclasses.replace(config, bad_rows="quarantine", max_bad_share=1.0))
    faults = report.told({column.name: column for column in schema.columns}, "line")
    rows = np.flatnonzero(~np.isin(_lines(read), [line for line, _, _ in report.bad_lines]))
    if faults and (not len(rows) or len(report.bad_lines) >= MAX_LINES):  # beyond which lines are not named
        raise DataError(f"{report.where}: {report.bad} of {report.rows} rows cannot be used: {faults}")
    return rows, faults


def _rows(read: TableRead, keep: str, sound: Indices) -> _Rows:
    """All rows in the order of their lines, also those that could not be parted into cells."""
    lines: list[int] = _lines(read).tolist()
    used = set(sound.tolist())
    rows = [(line, name, row in used) for row, (line, name) in enumerate(zip(lines, _names(read, keep), strict=True))]
    torn = {line for line, _, _ in read.report.bad_lines}.difference(lines)
    rows = sorted([*rows, *((line, "" if keep else str(line), False) for line in torn)])
    return _Rows([name for _, name, _ in rows], [whole for _, _, whole in rows])


def _names(read: TableRead, keep: str) -> list[str]:
    if keep and read.persons is not None:
        return [name or "" for name in read.persons.to_pylist()]
    return list(map(str, _lines(read).tolist()))


def _lines(read: TableRead) -> Lines:
    return np.zeros(0, np.int64) if read.lines is None else read.lines


def _csv(first: str, rows: _Rows, predictions: Predictions) -> str:
    if any(values.ndim > 1 for values in predictions.values()):
        raise DataError("this model's outputs are arrays: use LoadedModel.outputs in Python")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, [first, *predictions]))
    values, none = zip(*predictions.values(), strict=True), [""] * len(predictions)
    for name, sound in zip(rows.names, rows.sound, strict=True):
        writer.writerow(map(_cell, [name, *(next(values) if sound else none)]))
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
