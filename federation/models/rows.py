"""Rows as people have them (numbers, words, dates, by column) as the schema stores them, for prediction."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import DataError
from sovfed.federation.schema import nearest
from sovfed.federation.tasks.columns import CODES, MISSING_CODE, NUMBERS, REFUSE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sovfed.federation.tasks.columns import Column, Schema, Table

SHOWN: Final = 5  # rows that an error names
MAX_CELLS: Final = 1024  # of an array that a table holds cell by cell
TRUE: Final = ("1", "true", "yes", "y")
FALSE: Final = ("0", "false", "no", "n")
ABSENT: Final = ("", "na", "nan", "n/a", "null", "none", "nat", "<na>")
EPOCH: Final = datetime.date(1970, 1, 1)


def to_table(schema: Schema, columns: Mapping[str, Sequence[object]]) -> Table:
    """The inputs of `columns` as the schema stores them; what the schema does not name is left alone.

    A column that is an array stands under its name, as nested lists, or cell by cell. Raises DataError.
    """
    by_name = {str(name).strip(): values for name, values in columns.items()}
    arrays = {column.name: _stored(column, by_name) for column in schema.inputs}
    counts = {len(array) for array in arrays.values()}
    if len(counts) > 1:
        raise DataError(f"the columns are of {sorted(counts)} rows")
    table: dict[str, npt.NDArray[Any]] = {column.name: arrays[column.name] for column in schema.shaped}
    if schema.numbers:
        table[NUMBERS] = np.stack([arrays[column.name] for column in schema.numbers], 1)
    if schema.codes:
        table[CODES] = np.stack([arrays[column.name] for column in schema.codes], 1)
    return table


def _stored(column: Column, columns: Mapping[str, Sequence[object]]) -> npt.NDArray[Any]:
    """A column's values in the type that the schema stores, all within their bounds."""
    if column.name not in columns:
        return _from_cells(column, columns)
    values = columns[column.name]
    if column.kind == "text":
        return np.array([_bytes(column, value) for value in values], column.dtype).reshape(-1, *column.shape)
    if column.shape:
        return _checked(column, _array(column, values)).astype(column.dtype)
    converted = _checked(column, _converted(column, values, _reader(column)))
    if column.kind == "category":
        converted = np.where(np.isnan(converted), MISSING_CODE, converted)
    return converted.astype(column.dtype)


def _from_cells(column: Column, columns: Mapping[str, Sequence[object]]) -> npt.NDArray[Any]:
    cells = list(column.cells()) if column.shape and column.kind != "text" else [column.name]
    missing = [cell for cell in cells if cell not in columns]
    if missing:
        name = column.name if len(missing) == len(cells) else missing[0]
        raise DataError(f"no column '{name}'{nearest(name, columns)}")
    parts = [_converted(column, columns[cell], float) for cell in cells]
    return _checked(column, np.stack(parts, 1).reshape(-1, *column.shape)).astype(column.dtype)


def _reader(column: Column) -> Callable[[str], float]:
    """What makes a number of a value's word; it raises ValueError or KeyError if there is none."""
    if column.kind == "category":
        codes = {word: float(code) for code, word in enumerate(column.categories)}
        return codes.__getitem__
    if column.kind == "boolean":
        words = dict.fromkeys((*TRUE, *map(str.lower, column.true)), 1.0)
        words |= dict.fromkeys((*FALSE, *map(str.lower, column.false)), 0.0)
        return lambda text: words[text.lower()]
    return _day if column.kind == "date" else float


def _converted(column: Column, values: Sequence[object], read: Callable[[str], float]) -> npt.NDArray[np.float64]:
    """Each value read; NaN where it is missing. Raises DataError where one cannot be read."""
    numeric = np.asarray(values)
    if numeric.dtype.kind in "fiu" and column.kind in ("number", "image", "tokens"):
        return numeric.astype(np.float64)
    converted, wrong = np.full(len(values), np.nan), []
    for row, value in enumerate(values):
        text = _text(value)
        if text.lower() in ABSENT and not (column.kind == "category" and text in column.categories):
            continue
        try:
            converted[row] = read(text)
        except (ValueError, KeyError, OverflowError):
            wrong.append(row)
    if wrong:
        fault = "no known category" if column.kind == "category" else f"no {column.kind}"
        raise DataError(f"column '{column.name}': {len(wrong)} of {len(values)} values are {fault}, {_rows(wrong)}")
    return converted


def _checked(column: Column, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`values`, all within the column's bounds, or missing where they may be. Raises DataError."""
    low, high = column.bounds
    flat = values.reshape(len(values), -1)
    if column.missing == REFUSE and (rows := np.flatnonzero(np.isnan(flat).any(1))).size:
        raise DataError(f"column '{column.name}': missing in {rows.size} of {len(values)} rows, {_rows(rows)}")
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero(((flat < low) | (flat > high)).any(1))
    if rows.size:
        raise DataError(
            f"column '{column.name}': {rows.size} of {len(values)} rows outside [{low:g}, {high:g}]"
            f"{' ' + column.unit if column.unit else ''}, {_rows(rows)}"
        )
    return values


def _array(column: Column, values: Sequence[object]) -> npt.NDArray[np.float64]:
    try:
        array = np.array([np.asarray(value, np.float64).reshape(column.shape) for value in values])
    except (ValueError, TypeError) as error:
        raise DataError(f"column '{column.name}': not arrays of shape {list(column.shape)}") from error
    return array.reshape(-1, *column.shape)


def _bytes(column: Column, value: object) -> npt.NDArray[Any]:
    raw = np.frombuffer(str(value).encode()[: column.size], np.uint8).astype(column.dtype) + 1
    return np.pad(raw, (0, column.size - len(raw)))


def _text(value: object) -> str:
    """A value's word: a whole number has no decimals, a day no time."""
    if value is None or value != value:  # NaN and NaT
        return ""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime):
        return value.date().isoformat()
    if isinstance(value, np.datetime64):
        return str(value.astype("datetime64[D]"))
    return str(value).strip()


def _day(text: str) -> float:
    try:
        return float((datetime.date.fromisoformat(text[:10]) - EPOCH).days)
    except ValueError:
        return float(text)


def _rows(rows: Sequence[int] | npt.NDArray[Any]) -> str:
    shown = ", ".join(str(int(row) + 1) for row in rows[:SHOWN])
    return f"row{'s' if len(rows) > 1 else ''} {shown}{', …' if len(rows) > SHOWN else ''}"


def made_up_rows(schema: Schema, count: int) -> dict[str, list[object]]:
    """`count` records that nobody is behind, as a table has them, by column: an example that `to_table` takes."""
    table = schema.made_up(count)
    rows: dict[str, list[object]] = {}
    for column in schema.inputs:
        if column.kind == "text":
            rows[column.name] = [f"made-up text {number}" for number in range(count)]
        elif column.shape:
            cells = table[column.name].reshape(count, -1)
            if column.size <= MAX_CELLS:
                rows |= {cell: cells[:, index].tolist() for index, cell in enumerate(column.cells())}
            else:
                rows[column.name] = table[column.name].tolist()
        elif column.kind == "category":
            codes = table[CODES][:, schema.codes.index(column)]
            rows[column.name] = [column.categories[code] for code in codes]
        else:
            numbers = table[NUMBERS][:, schema.numbers.index(column)]
            rows[column.name] = [_plain(column, float(value)) for value in numbers]
    return rows


def _plain(column: Column, value: float) -> object:
    if column.kind == "boolean":
        return bool(value)
    if column.kind == "date":
        return (EPOCH + datetime.timedelta(days=int(np.ceil(value)))).isoformat()
    low, high = column.bounds
    return min(max(float(f"{value:.5g}"), low), high)
