"""From stored values to what a model is given: scaling, missing values, categories. Stored with the model.

Each number enters as u = (x − middle) / half width of its declared bounds, so in [−1, 1], and is then standardised with
the federation's mean and deviation of u: [mean (f), deviation (f)], the run's `scale`, over the `f` scaled values of a
record. Sums over u are bounded by the number of records whatever the unit, and no outlier can take the digits away.
Where a column's scaling is log, x is ln(1 + value − low) in all of this, and its bounds are those of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.config import LEAST_SPREAD
from sovfed.federation.tasks.columns import CODES, LOG, NUMBERS, PACKED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from sovfed.federation.messages import Sums
    from sovfed.federation.tasks.columns import Column, Schema, Table
    from sovfed.federation.tasks.trees import Tree

STD_FLOOR: Final = 1e-6
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transform:
    """What `schema`'s stored values become. A tree is a tensor where there is one of them, else a dict by column."""

    schema: Schema

    @cached_property
    def scaled(self) -> tuple[Column, ...]:
        """The columns that the federation's mean and deviation scale, in the order of the scale."""
        return tuple(
            column for column in (*self.schema.numbers, *self.schema.shaped, *self.schema.targets) if column.scaled
        )

    @cached_property
    def size(self) -> int:
        """Scaled values f of a record."""
        return sum(column.size for column in self.scaled)

    @property
    def profile_size(self) -> int:
        """Length of a profile."""
        return 3 * self.size

    @cached_property
    def width(self) -> int:
        """Values of the packed input."""
        indicators = sum(column.indicator for column in self.schema.numbers)
        return len(self.schema.numbers) + indicators + sum(map(_categories, self.schema.codes))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of what a model is given: `PACKED`, where there are numbers or categories, and each array's own."""
        packed = (PACKED,) if self.schema.numbers or self.schema.codes else ()
        return (*packed, *(column.name for column in self.schema.shaped))

    def profile(self, table: Table) -> Sums:
        """[present (f), Σu (f), Σu² (f)] over the records of `table`: sums, which may be added."""
        u = np.empty((len(next(iter(table.values()))) if table else 0, self.size))
        offset = 0
        for column in self.scaled:
            u[:, offset : offset + column.size] = self._u(column, table)
            offset += column.size
        present = ~np.isnan(u)
        u[~present] = 0.0
        totals = [present.sum(0, dtype=np.float64), u.sum(0)]
        return np.concatenate([*totals, np.square(u, out=u).sum(0)])

    def scale(self, profile: Sums) -> Sums:
        """[mean (f), deviation (f)] of a profile, within the declared bounds.

        A deviation is at least `LEAST_SPREAD` of its column's declared range: by a smaller one a model could look at
        single values as through a magnifying glass, so institutions refuse it. Of a column without a value, or with
        one alone, nothing is learnt, and its weight stays as it began: it is scaled by its bounds, or the first other
        value to predict from would count for hundreds.
        """
        present, total, squares = np.split(np.asarray(profile, np.float64), 3)
        count = np.maximum(present, 1.0)
        mean = total / count
        spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        spread = np.where(spread < STD_FLOOR, 1.0, np.clip(spread, 2 * LEAST_SPREAD, 2.0))
        return np.concatenate([np.clip(mean, -1.0, 1.0), spread])

    @cached_property
    def public_scale(self) -> Sums:
        """The scale by the declared bounds alone: no record has any influence on it."""
        scale = np.repeat([0.0, 1.0], self.size)
        scale.flags.writeable = False
        return scale

    def admits(self, scale: Sums, least_spread: float) -> str:
        """Why `scale` is none that a federation's own values could have, or ""."""
        mean, spread = scale[: scale.size // 2], scale[scale.size // 2 :]
        if not _within(mean, -1.0, 1.0):
            return "a column's mean is outside its declared bounds"
        if not _within(spread, 2 * least_spread * (1 - 1e-9), 2.0):
            return f"a column's deviation is outside {least_spread:g} to 1 of its declared range"
        return ""

    def affine(self, scale: Sums) -> dict[str, tuple[Floats, Floats]]:
        """For each stored array of numbers the (a, b) of x → (x − a)·b, in the shape of a record's part of it."""
        offset, by_column = 0, dict[str, tuple[Floats, Floats]]()
        for column in (*self.schema.numbers, *self.schema.shaped, *self.schema.targets):
            middle, half = _middle(column)
            shift, spread = np.zeros(column.size), np.ones(column.size)
            if column.scaled:
                shift = scale[offset : offset + column.size]
                spread = np.maximum(scale[self.size + offset : self.size + offset + column.size], STD_FLOOR)
                offset += column.size
            by_column[column.name] = (
                (middle + half * shift).reshape(column.shape), (1.0 / (half * spread)).reshape(column.shape)
            )  # fmt: skip
        numbers = [by_column.pop(column.name) for column in self.schema.numbers]
        if numbers:
            by_column[NUMBERS] = np.array([a for a, _ in numbers]), np.array([b for _, b in numbers])
        return by_column

    def unit(self, scale: Sums) -> float:
        """What 1 of the target, as the model learns it, is in the target's own unit; 1 where not just one is scaled."""
        targets = [column for column in self.schema.targets if not _untouched(column)]
        if len(targets) != 1:
            return 1.0
        return float(1.0 / self.affine(scale)[targets[0].name][1])

    def bound(self, scale: Sums, device: Any = "cpu") -> Bound:
        """The transform with `scale`, ready to be used on `device`."""
        return Bound(self, scale, device)

    def _u(self, column: Column, table: Table) -> Floats:
        packed = column.packed and NUMBERS in table
        values = table[NUMBERS][:, self.schema.numbers.index(column)] if packed else table[column.name]
        middle, half = _middle(column)
        if column.scaling == LOG:
            values = _logged(values.astype(np.float64), column.low)
        return (values.reshape(len(values), column.size).astype(np.float64) - middle) / half


class Bound:
    """A transform with its scale on a device: torch tensors of stored values in, trees out."""

    def __init__(self, transform: Transform, scale: Sums, device: Any) -> None:
        import torch

        self.schema, self._transform = transform.schema, transform
        self._affine = {
            name: tuple(torch.from_numpy(np.ascontiguousarray(array)).to(device, torch.float32) for array in pair)
            for name, pair in transform.affine(scale).items()
        }
        logs = [column.scaling == LOG for column in self.schema.numbers]
        lows = [column.low if log else 0.0 for column, log in zip(self.schema.numbers, logs, strict=True)]
        self._any_log = any(logs)
        self._logs = torch.tensor(logs, dtype=torch.bool, device=device)
        self._lows = torch.tensor(lows, dtype=torch.float32, device=device)
        self._plain = {column.name for column in (*self.schema.shaped, *self.schema.targets) if _untouched(column)}
        self._missing = any(column.missing != "refuse" for column in self.schema.numbers)
        if self._missing:
            fill = np.array([_filled(column) for column in self.schema.numbers])
            a, b = transform.affine(scale)[NUMBERS]
            filled = np.where(np.isnan(fill), 0.0, (fill - a) * b)
            self._fill = torch.from_numpy(filled).to(device, torch.float32)
            indicated = [index for index, column in enumerate(self.schema.numbers) if column.indicator]
            self._told = torch.tensor(indicated, dtype=torch.int64, device=device)
        self._sizes = [_categories(column) for column in self.schema.codes]
        starts = np.cumsum([0, *self._sizes])[:-1]
        self._starts = torch.tensor(starts, dtype=torch.int64, device=device)
        own = [column.missing == "category" for column in self.schema.codes]
        self._own = torch.tensor(own, dtype=torch.bool, device=device)  # for what is missing
        self._any_own = any(own)

    def inputs(self, table: Mapping[str, Tensor]) -> Tree:
        """What the model is given."""
        inputs = {column.name: self._one(column.name, table) for column in self.schema.shaped}
        if NUMBERS in table or CODES in table:
            inputs = {PACKED: self._packed(table), **inputs}
        return inputs if len(inputs) != 1 else next(iter(inputs.values()))

    def targets(self, table: Mapping[str, Tensor]) -> Tree:
        """What is learnt."""
        targets = {column.name: self._one(column.name, table) for column in self.schema.targets}
        return targets if len(targets) != 1 else next(iter(targets.values()))

    def _one(self, name: str, table: Mapping[str, Tensor]) -> Tensor:
        if name in self._plain:
            return table[name]
        a, b = self._affine[name]
        return (table[name] - a).mul_(b)

    def _packed(self, table: Mapping[str, Tensor]) -> Tensor:
        import torch

        parts = []
        if NUMBERS in table:
            a, b = self._affine[NUMBERS]
            numbers = (self._numbers(table[NUMBERS]) - a).mul_(b)
            if self._missing:
                absent = numbers.isnan()
                numbers = torch.where(absent, self._fill, numbers)
                parts = [numbers, absent[:, self._told].float()] if len(self._told) else [numbers]
            else:
                parts = [numbers]
        if CODES in table:
            codes = table[CODES].long()
            hot = torch.zeros(codes.shape[0], sum(self._sizes) + 1, device=codes.device)  # the last: nowhere
            last = torch.tensor(self._sizes, device=codes.device) - 1
            positions = torch.where(codes < 0, last if self._any_own else codes, codes) + self._starts
            positions = torch.where((codes < 0) & ~self._own, hot.shape[1] - 1, positions)
            parts.append(hot.scatter_(1, positions, 1.0)[:, :-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _numbers(self, stored: Tensor) -> Tensor:
        """The numbers as they are scaled, [n, numbers]: of those with a long tail the logarithm."""
        if not self._any_log:
            return stored
        return (stored - self._lows).clamp_min(0).log1p().where(self._logs, stored)


def values_of(schema: Schema, scaled: Floats) -> Floats:
    """The numbers [n, numbers] that those with a logarithm, `scaled`, are of."""
    values = scaled.copy()
    for place, column in enumerate(schema.numbers):
        if column.scaling == LOG:
            values[:, place] = np.expm1(scaled[:, place]) + column.low
    return values


def _logged(values: Any, low: float) -> Any:
    return np.log1p(np.maximum(values - low, 0.0))


def _within(values: Sums, low: float, high: float) -> bool:
    """Whether no value is outside, and each is a number, as neither end is of values of which one is none."""
    return not values.size or bool(low <= values.min() and values.max() <= high)


def _middle(column: Column) -> tuple[float, float]:
    """Middle and half width of the declared bounds, as they are scaled; 0 and 1 where values stay what they are."""
    if _untouched(column):
        return 0.0, 1.0
    low, high = column.bounds
    if column.scaling == LOG:
        low, high = 0.0, float(np.log1p(high - low))
    return (low + high) / 2, (high - low) / 2


def _untouched(column: Column) -> bool:
    return column.scaling == "none" or column.kind in ("category", "tokens", "text") or (
        column.role == "target" and column.kind == "boolean"
    )  # fmt: skip


def _filled(column: Column) -> float:
    """What stands for a missing value, as it is scaled; NaN: the mean."""
    if column.missing != "constant":
        return float("nan")
    return float(_logged(np.float64(column.fill), column.low)) if column.scaling == LOG else column.fill


def _categories(column: Column) -> int:
    return len(column.categories) + (column.missing == "category")
