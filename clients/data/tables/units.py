"""Values in another unit than the schema's: converted as the institution declares, else suspected by their middle."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.schema import bounded
from sovfed.federation.tasks.columns import NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sovfed.federation.tasks.columns import Column, Schema, Table

POUNDS: Final = 1 / 0.45359237  # in a kilogram
# What one unit is in another, of which substance (mg/dl in a mmol/l, or µmol/l in a mg/dl), by what columns are called.
SUBSTANCES: Final = {
    "glucose": (18.02, ("glu", "gly", "zucker", "sugar")),
    "cholesterol": (38.67, ("chol", "hdl", "ldl")),
    "triglycerides": (88.57, ("trig", "tg")),
    "urea": (6.006, ("urea", "harnst")),
    "urea nitrogen": (2.801, ("bun", "urea")),
    "lactate": (9.008, ("lact", "lakt")),
    "calcium": (4.008, ("calc", "kalz", "calz")),
    "creatinine": (88.42, ("crea", "krea")),
    "bilirubin": (17.1, ("bili",)),
    "uric acid": (59.48, ("uric", "harns")),
}
MEASURES: Final = {"pounds": (POUNDS, ("kg", "lb", "lbs")), "inches": (2.54, ("cm", "in"))}  # by the task's unit
TENS: Final = tuple((power, "a power of ten") for power in (10.0, 100.0, 1000.0, 1e6))
SHORT: Final = 3  # letters that stand in other words too
SHOWN: Final = 4  # factors that would fit
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
    factors = _factors(column, middle, low, high)
    fits = f" and would fit {' or '.join(_told(*factor) for factor in factors)}" if factors else ""
    only = factors[0][0] if len(factors) == 1 else None
    multiply = "FACTOR" if only is None else np.format_float_positional(only, DIGITS, False, False, "-")
    return (
        f"column '{column.name}'{unit}: {finding}{fits}; is it in another unit? "
        f"If so, in the file of data.mapping: columns: {{{column.name}: {{multiply: {multiply}}}}}"
    )


def _factors(column: Column, middle: float, low: float, high: float) -> list[tuple[float, str]]:
    """The factors between two units with which the values would fit, those that fit best first, and of what each is.

    Where the column's name or unit tells what it is of, no other counts: by its size alone none is chosen.
    """
    substances = {of: factor for of, (factor, _) in SUBSTANCES.items()}
    named = {of: factor for of, (factor, starts) in SUBSTANCES.items() if _named(column.name.casefold(), starts)}
    measures = {of: factor for of, (factor, _) in MEASURES.items()}
    measured = {of: factor for of, (factor, units) in MEASURES.items() if column.unit.casefold() in units}
    known = named or measured or (substances if "/" in column.unit else substances | measures)
    told = _fitting([(factor, of) for of, factor in known.items()], middle, low, high)
    tens = _fitting(TENS, middle, low, high)
    return (told if told and (named or measured) else [*told, *tens])[:SHOWN]


def _named(name: str, starts: tuple[str, ...]) -> bool:
    """Whether a word of `name` begins with one of `starts`; a long one may stand within a word, as in blutzucker."""
    words = re.split(r"[\W\d_]+", name)

    def begins(start: str) -> bool:
        return start in name if len(start) > SHORT else any(word.startswith(start) for word in words)

    return any(map(begins, starts))


def _fitting(factors: Sequence[tuple[float, str]], middle: float, low: float, high: float) -> list[tuple[float, str]]:
    target = (low + high) / 2
    if middle <= 0 or target <= 0:
        return []
    both_ways = [(power, of) for factor, of in factors for power in (factor, 1 / factor)]
    fits = [(factor, of) for factor, of in both_ways if low <= middle * factor <= high]
    return sorted(fits, key=lambda fit: abs(np.log(middle * fit[0] / target)))


def _told(factor: float, of: str) -> str:
    return f"{'times' if factor > 1 else 'divided by'} {max(factor, 1 / factor):.5g} ({of})"


def _numbers(schema: Schema, table: Table) -> Iterator[tuple[Column, np.typing.NDArray[np.float32]]]:
    if NUMBERS in table:
        for position, column in enumerate(schema.numbers):
            if column.kind == "number":
                yield column, table[NUMBERS][:, position]
    for column in schema.targets:
        if column.kind == "number" and not column.shape and column.name in table:
            yield column, table[column.name]
