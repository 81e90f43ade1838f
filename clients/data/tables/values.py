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

if TYPE_CHECKING:
    from collections.abc import Sequence


def cells_of(values: Sequence[Any], *, numeric: bool) -> pa.Array:
    """The cells of a column: of a numeric one numbers, or lists of them, as long as all are; else texts or days."""
    present = [value for value in values if value is not None]
    if numeric and all(map(_is_number, present)):
        return pa.array([None if value is None else _float(value) for value in values], pa.float64())
    if numeric and any(isinstance(value, list) for value in present):
        return pa.array([_floats(value) for value in values], pa.list_(pa.float64()))
    if present and all(isinstance(value, datetime.date) for value in present):
        return pa.array(values)
    return pa.array([text_of(value) for value in values], pa.string())


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
        return json.dumps(value, default=str)
    except RecursionError:
        return ""


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf if value > 0 else -math.inf


def _floats(value: Any) -> list[float] | None:
    """A list of numbers; anything else beside such lists is none."""
    if not isinstance(value, list) or not all(map(_is_number, value)):
        return None
    return [_float(item) for item in value]
