"""Python's values of a column, as JSON, databases and facts have them, as cells for Arrow: each by itself.

What becomes of a value never depends on the other rows of its batch, as it would if Arrow chose the column's type: an
identifier 7.0 is "7" whether or not another row has a text there.
"""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import types

if TYPE_CHECKING:
    from collections.abc import Sequence


def cells_of(values: Sequence[Any], *, numeric: bool) -> pa.Array:
    """The cells of a column: of a numeric one numbers, as long as all are; else texts or days. A list is its JSON."""
    present = [value for value in values if value is not None]
    if numeric and all(map(_is_number, present)):
        return pa.array([None if value is None else _float(value) for value in values], pa.float64())
    if numeric:
        numbers = (float(value) if isinstance(value, bool) else value for value in values)
        return pa.array([text_of(value) for value in numbers], pa.string())
    if present and all(isinstance(value, datetime.date) for value in present):
        return pa.array(values)
    return pa.array([text_of(value) for value in values], pa.string())


def lists_of(cells: pa.Array) -> pa.Array:
    """The lists of numbers that `cells`, as `cells_of` gives them, are the JSON of: each by itself; else none."""
    texts = cells.to_pylist() if types.is_string(cells.type) else [None] * len(cells)
    return pa.array([_list_in(text) for text in texts], pa.list_(pa.float64()))


def text_of(value: Any) -> str | None:
    """A value as a table would have it: whole numbers without a decimal point, as identifiers and classes are."""
    if value is None or isinstance(value, (bytes, bytearray, memoryview)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (float, Decimal)):
        return f"{value:.0f}" if math.isfinite(value) and value == int(value) else str(value)
    text = value if isinstance(value, str) else _nested(value) if isinstance(value, (list, dict)) else str(value)
    return text.encode("utf-8", "replace").decode()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal))


def _nested(value: Any) -> str:
    """As JSON; "" where it is nested as deep as can just be read, and no deeper can be written."""
    try:
        return json.dumps(value, default=lambda inner: float(inner) if isinstance(inner, Decimal) else str(inner))
    except RecursionError:
        return ""


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _list_in(text: str | None) -> list[float] | None:
    """A number alone is a list of one."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    items = value if isinstance(value, list) else [value]
    return [_float(item) for item in items] if all(map(_is_number, items)) else None
