"""The predictions of a model for each row of a table, as a table in CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.data.chosen import for_prediction
from sovfed.clients.data.tables.prediction import read_for_prediction
from sovfed.federation.errors import DataError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sovfed.federation.models.outputs import Predictions
    from sovfed.federation.models.saved import LoadedModel
    from sovfed.federation.tasks.columns import Schema, Table

FORMULA: Final = re.compile(r"[=@\t\r]|[+-](?![0-9.,]*$)")  # how a spreadsheet's formulas begin, but for numbers


def table_of(loaded: LoadedModel, table: Path, keep: str, settings: Sequence[str] = ()) -> str:
    """The predictions for each row of `table`, in CSV, with its column `keep` or the line.

    `settings` are those of the group data that say how the table is written; days may be written either way without.
    """
    inputs, rows = _read(loaded.task.schema, table, keep, settings)
    return _csv(keep or "line", rows, loaded.predict(inputs))


def _read(schema: Schema, path: Path, keep: str, settings: Sequence[str]) -> tuple[Table, list[str]]:
    """The inputs of each row, and its text in column `keep`, or its line in the file. Raises DataError."""
    without_person = dataclasses.replace(schema, person="")
    read = read_for_prediction(without_person, path, for_prediction(settings, keep))
    if keep and read.persons is not None:
        return read.table, read.persons.to_pylist()
    return read.table, [] if read.lines is None else list(map(str, read.lines.tolist()))


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
