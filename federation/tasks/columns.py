"""What a record is made of: its columns with kinds, units and bounds, what is learnt, and who is a person."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from sovfed.federation.schema import bounded, choice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KINDS: Final = ("number", "boolean", "category", "date", "image", "tokens", "text")
SCALARS: Final = ("number", "boolean", "date")  # kept side by side as numbers
ROLES: Final = ("input", "target")
REFUSE: Final = "refuse"
MISSING_CODE: Final = -1  # of a category; of a number it is NaN
MISSING: Final = (REFUSE, "constant", "mean", "category")
LOG: Final = "log"
SCALINGS: Final = ("standard", LOG, "bounds", "none")
NUMBERS: Final = ".numbers"  # of a table: all scalar inputs but categories, float32 [n, numbers], NaN where missing
CODES: Final = ".codes"  # all inputs that are categories, int16 [n, categories], -1 where missing
PACKED: Final = "x"  # what a model is given of both
EPOCH: Final = date(1970, 1, 1)  # from which a date's days count
MAX_COLUMNS: Final = 10_000
MAX_DIMENSIONS: Final = 8
MAX_VALUES: Final = 1 << 24  # of a column in one record
MAX_CATEGORIES: Final = 10_000
Table: TypeAlias = "Mapping[str, npt.NDArray[Any]]"  # by column; a record is a place in the first dimension


@dataclass(frozen=True)
class Column:
    """One column of a schema.

    number    a value in [low, high], or an array of them of `shape`; `date` is days since 1970-01-01
    boolean   0 or 1; category: one of `categories`, told by its word
    image     whole numbers 0 to 255 of `shape` (channels, height, width)
    tokens    whole numbers in [low, high] of `shape` (length,)
    text      the first `shape` (length,) bytes of a UTF-8 text, each plus one, then zeros

    `missing`: refuse the record; take `fill`; take the federation's mean (`indicator` adds a column that says so); or,
    of a category, a category of its own. `scaling`: standard, with the federation's mean and deviation; log, those of
    ln(1 + value − low), for a long tail; by the declared bounds; or none.
    """

    name: str = bounded(low=1, high=64)
    kind: str = choice("number", KINDS)
    low: float = bounded(0.0, -1e30, 1e30, doc="least value that can be")
    high: float = bounded(1.0, -1e30, 1e30, doc="greatest value that can be")
    unit: str = bounded("", 0, 32, doc="of the values, as in mmol/l; shown, never converted")
    shape: tuple[int, ...] = dataclasses.field(default=())
    categories: tuple[str, ...] = dataclasses.field(default=())
    role: str = choice("input", ROLES)
    missing: str = choice(REFUSE, MISSING)
    fill: float = bounded(0.0, -1e30, 1e30)
    indicator: bool = bounded(False, doc="whether a further input says that the value was missing")
    scaling: str = choice("standard", SCALINGS)
    plausible: tuple[float, ...] = dataclasses.field(default=())  # where the middle of an institution's values lies
    true: tuple[str, ...] = dataclasses.field(default=())  # further words for a boolean's 1, and its 0
    false: tuple[str, ...] = dataclasses.field(default=())

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_shape()
        if self.name.startswith(".") or self.name != self.name.strip():
            raise ValueError(f"column {self.name!r}: a name begins with no dot and has no spaces around it")
        if not self.low < self.high:
            raise ValueError(f"column '{self.name}': low {self.low:g} is not below high {self.high:g}")
        if (self.kind in ("image", "tokens", "text")) != bool(self.shape) and self.kind != "number":
            raise ValueError(f"column '{self.name}': a {self.kind} {'needs a shape' if not self.shape else 'has none'}")
        if (self.kind == "category") != bool(self.categories):
            raise ValueError(f"column '{self.name}': categories are for a category, which has at least one")
        if len(set(self.categories)) != len(self.categories) or len(self.categories) > MAX_CATEGORIES:
            raise ValueError(
                f"column '{self.name}': {len(self.categories)} categories, expected up to {MAX_CATEGORIES} unequal ones"
            )
        if self.missing == "category" and self.kind != "category":
            raise ValueError(f"column '{self.name}': missing 'category' is for categories; take mean or constant")
        if self.missing == "mean" and (self.kind == "category" or self.scaling == "none"):
            raise ValueError(f"column '{self.name}': missing 'mean' is for numbers that are scaled")
        if self.scaling == LOG and (self.kind != "number" or not self.packed):
            raise ValueError(f"column '{self.name}': scaling 'log' is for a number that is an input by itself")
        if self.missing != REFUSE and (self.role == "target" or self.shape):
            raise ValueError(f"column '{self.name}': only a scalar input may be missing")
        if self.plausible and (len(self.plausible) != 2 or not self.plausible[0] < self.plausible[1]):
            raise ValueError(f"column '{self.name}': plausible is {list(self.plausible)}, expected [least, greatest]")

    def _check_choices(self) -> None:
        for key, options in (("kind", KINDS), ("role", ROLES), ("missing", MISSING), ("scaling", SCALINGS)):
            if (value := getattr(self, key)) not in options:
                array = "; an array of numbers is a number with a shape" if key == "kind" else ""
                raise ValueError(f"column '{self.name}': {key} is '{value}', expected {', '.join(options)}{array}")

    def _check_shape(self) -> None:
        known = self.shape[:MAX_DIMENSIONS]  # the product of many numbers takes long
        whole = len(known) == len(self.shape) and all(1 <= size <= MAX_VALUES for size in known)
        if not whole or math.prod(known) > MAX_VALUES:
            raise ValueError(f"column '{self.name}': shape {list(known)}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest value that may be stored."""
        match self.kind:
            case "boolean":
                return 0.0, 1.0
            case "category":
                return 0.0, len(self.categories) - 1.0
            case "image":
                return 0.0, 255.0
            case "text":
                return 0.0, 256.0
            case _:
                return self.low, self.high

    @property
    def reach(self) -> str:
        """The bounds as people write them, without the unit."""
        low, high = self.bounds
        if self.kind == "boolean":
            return "no or yes"
        if self.kind == "date":
            with contextlib.suppress(OverflowError):  # of a schema in Python, which may say any number
                return f"{EPOCH + timedelta(days=low)} to {EPOCH + timedelta(days=high)}"
        return f"{low:g} to {high:g}"

    @property
    def size(self) -> int:
        """Values of a record."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As it is stored."""
        if self.role == "target":
            return np.dtype(np.int64 if self.kind in ("category", "tokens") else np.float32)
        return np.dtype({"category": "i2", "image": "u1", "tokens": "i4", "text": "i2"}.get(self.kind, "f4"))

    @property
    def scaled(self) -> bool:
        """Whether the federation's mean and deviation scale it."""
        number = self.kind in ("number", "date") or (self.kind == "boolean" and self.role == "input")
        return self.scaling in ("standard", LOG) and number

    @property
    def packed(self) -> bool:
        """Whether it stands in a table beside others."""
        return self.role == "input" and not self.shape

    def cells(self) -> Iterator[str]:
        """The names of its values in a table's header: its own, or NAME_0_0 … for a shape."""
        if not self.shape:
            yield self.name
            return
        for index in np.ndindex(*self.shape):
            yield "_".join([self.name, *map(str, index)])


@dataclass(frozen=True)
class Schema:
    """The columns that a record has. `person` is the column that groups a person's records.

    "" leaves it to the institution's settings; `one_row_a_person` declares each row another person.
    """

    columns: tuple[Column, ...]
    person: str = bounded("", 0, 64)
    one_row_a_person: bool = False

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        alike = {normalize("NFC", name) for name in names}
        if len(alike) != len(names) or PACKED in names or self.person in names or len(names) > MAX_COLUMNS:
            raise ValueError(
                f"columns {names[:8]}…: names must be unequal, none of them '{PACKED}' or the person's, at most "
                f"{MAX_COLUMNS}"
            )

    @cached_property
    def inputs(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.role == "input")

    @cached_property
    def targets(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.role == "target")

    @cached_property
    def numbers(self) -> tuple[Column, ...]:
        """The columns of `NUMBERS`, in their order."""
        return tuple(column for column in self.inputs if column.packed and column.kind in SCALARS)

    @cached_property
    def codes(self) -> tuple[Column, ...]:
        """The columns of `CODES`, in their order."""
        return tuple(column for column in self.inputs if column.packed and column.kind == "category")

    @cached_property
    def shaped(self) -> tuple[Column, ...]:
        """The inputs that are arrays, each stored under its name."""
        return tuple(column for column in self.inputs if not column.packed)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The words of the classes that are learnt; () where that is something else."""
        if len(self.targets) != 1:
            return ()
        target = self.targets[0]
        return target.categories if target.kind == "category" else ("no", "yes") if target.kind == "boolean" else ()

    def stored(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """Type and shape of a record's part of each array of a `Table`."""
        arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        if self.numbers:
            arrays[NUMBERS] = np.dtype(np.float32), (len(self.numbers),)
        if self.codes:
            arrays[CODES] = np.dtype(np.int16), (len(self.codes),)
        return arrays | {column.name: (column.dtype, column.shape) for column in (*self.shaped, *self.targets)}

    def made_up(self, count: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
        """`count` records that nobody is behind, as a `Table`: the one generator for every check before a real record.

        Values lie anywhere within their bounds; of three records or more the first has every number at its lower bound,
        the second at its upper one. The same for the same seed.
        """
        generator = np.random.default_rng(seed)
        drawn = {column.name: _drawn(column, count, generator) for column in self.columns}
        table = {column.name: drawn[column.name] for column in (*self.shaped, *self.targets)}
        if self.numbers:
            table[NUMBERS] = np.stack([drawn[column.name] for column in self.numbers], 1).astype(np.float32)
        if self.codes:
            table[CODES] = np.stack([drawn[column.name] for column in self.codes], 1).astype(np.int16)
        return {name: table[name] for name in self.stored()}

    def to_dict(self) -> dict[str, Any]:
        """As plain values, which `federation.schema.bind` reads again."""
        return dataclasses.asdict(self)


def _drawn(column: Column, count: int, generator: np.random.Generator) -> npt.NDArray[Any]:
    low, high = column.bounds
    shape = (count, *column.shape)
    values: npt.NDArray[Any]
    if column.kind in ("number", "date"):
        values = low + (high - low) * generator.random(shape)
    elif column.role == "target":  # every class comes, as evenly as can be
        values = (np.argsort(generator.random(math.prod(shape))) % (high - low + 1) + low).reshape(shape)
    else:
        values = generator.integers(int(low), int(high) + 1, shape)
    if count > 2 and column.role == "input":
        values[0], values[1] = low, high
    return values.astype(column.dtype)


def number(name: str, low: float, high: float, **rest: Any) -> Column:
    """A number in [low, high]."""
    return Column(name, low=float(low), high=float(high), **rest)


def target(name: str, *classes: str) -> Column:
    """What is learnt: one of `classes`, told by its word."""
    return Column(name, "category", categories=classes, role="target")
