"""Values in another unit than the schema's: converted as the institution declares, else suspected by their middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.schema import bounded
from sovfed.federation.tasks.columns import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.tasks.columns import Column, Schema, Table

# What one unit is in another: mg/dl for a mmol/l of glucose, cholesterol, triglycerides, urea, lactate, calcium; a
# µmol/l of creatinine, bilirubin and uric acid for a mg/dl; pounds, inches, and powers of ten.
POUNDS: Final = 1 / 0.45359237  # in a kilogram
FACTORS: Final = (18.02, 38.67, 88.57, 6.006, 9.008, 4.008, 88.42, 17.1, 59.48, POUNDS, 2.54, 10.0, 100.0, 1000.0, 1e6)
MOST: Final = 0.5  # share outside the bounds from which on the unit is suspected
FEW: Final = 3  # values, fewer of which have no middle to speak of
DIGITS: Final = 8  # of a factor that is proposed


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """From a table's unit to the task's: a number of the table times `multiply`, plus `add`."""

    multiply: float = bounded(1.0, 1e-12, 1e12, doc="the task's units in one of the table's")
    add: float = bounded(0.0, -1e12, 1e12, doc="in the task's unit, after `multiply`")

    @property
    def changes(self) -> bool:
        """Whether it makes another number of one."""
        return (self.multiply, self.add) != (1.0, 0.0)

    def of(self, values: np.typing.NDArray[Any]) -> np.typing.NDArray[np.float64]:
        """`values` in the task's unit, computed in double precision; infinite where they are too large for that."""
        with np.errstate(over="ignore", invalid="ignore"):
            converted: np.typing.NDArray[np.float64] = values.astype(np.float64) * self.multiply + self.add
        return converted


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
    factor = _factor(middle, low, high)
    fits = f" and would fit {'times' if factor > 1 else 'divided by'} {max(factor, 1 / factor):.5g}" if factor else ""
    multiply = np.format_float_positional(factor, DIGITS, False, False, "-") if factor else "FACTOR"
    return (
        f"column '{column.name}'{unit}: {finding}{fits}; is it in another unit? "
        f"If so, in the file of data.mapping: columns: {{{column.name}: {{multiply: {multiply}}}}}"
    )


def _factor(middle: float, low: float, high: float) -> float:
    """The factor between two units with which the values would fit; 0 if there is none."""
    target = (low + high) / 2
    fits = [factor for power in FACTORS for factor in (power, 1 / power) if low <= middle * factor <= high]
    if not fits or middle <= 0 or target <= 0:
        return 0.0
    return min(fits, key=lambda factor: abs(np.log(middle * factor / target)))


def _numbers(schema: Schema, table: Table) -> Iterator[tuple[Column, np.typing.NDArray[np.float32]]]:
    if NUMBERS in table:
        for position, column in enumerate(schema.numbers):
            if column.kind == "number":
                yield column, table[NUMBERS][:, position]
    for column in schema.targets:
        if column.kind == "number" and not column.shape and column.name in table:
            yield column, table[column.name]
