"""Values that may be in another unit than the schema's: told by the middle of a column, and only ever suspected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.tasks.columns import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.tasks.columns import Column, Schema, Table

# What one unit is in another: mg/dl for a mmol/l of glucose, cholesterol, triglycerides, urea, lactate, calcium; a
# µmol/l of creatinine, bilirubin and uric acid for a mg/dl; pounds, inches, and powers of ten.
FACTORS: Final = (18.02, 38.67, 88.57, 6.006, 9.008, 4.008, 88.42, 17.1, 59.48, 2.2046, 2.54, 10.0, 100.0, 1000.0, 1e6)
MOST: Final = 0.5  # share outside the bounds from which on the unit is suspected
FEW: Final = 3  # values, fewer of which have no middle to speak of


def suspicion(schema: Schema, table: Table) -> list[str]:
    """A sentence for each column whose values are not where the task says is plausible; it names no value."""
    candidates = ((column, values) for column, values in _numbers(schema, table) if column.plausible)
    return [sentence for column, values in candidates if (sentence := suspected(column, values))]


def suspected(column: Column, values: np.typing.NDArray[np.float32]) -> str:
    """Why the values of `column` may be in another unit, or ""."""
    present = values[~np.isnan(values)]
    if len(present) < FEW:
        return ""
    low, high = column.plausible or column.bounds
    middle = float(np.median(present))
    if column.plausible:
        if low <= middle <= high:
            return ""
        finding = f"the middle of the values lies {'below' if middle < low else 'above'} what is plausible"
    else:
        share = float(((present < low) | (present > high)).mean())
        if share <= MOST:
            return ""
        finding = f"{share:.0%} of the values are outside the bounds"
    unit = f" ({column.unit})" if column.unit else ""
    return f"column '{column.name}'{unit}: {finding}{_by_factor(middle, low, high)}; is it in another unit?"


def _by_factor(middle: float, low: float, high: float) -> str:
    """By what factor that stands between two units the values would fit."""
    target = (low + high) / 2
    fits = [factor for power in FACTORS for factor in (power, 1 / power) if low <= middle * factor <= high]
    if not fits or middle <= 0 or target <= 0:
        return ""
    best = min(fits, key=lambda factor: abs(np.log(middle * factor / target)))
    return f" and would fit {'times' if best > 1 else 'divided by'} {max(best, 1 / best):g}"


def _numbers(schema: Schema, table: Table) -> Iterator[tuple[Column, np.typing.NDArray[np.float32]]]:
    if NUMBERS in table:
        for position, column in enumerate(schema.numbers):
            if column.kind == "number":
                yield column, table[NUMBERS][:, position]
    for column in schema.targets:
        if column.kind == "number" and not column.shape and column.name in table:
            yield column, table[column.name]
