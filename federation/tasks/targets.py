"""What a task.yaml lets be learnt: classes, labels, a number, or survival."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.schema import bounded, choice
from sovfed.federation.tasks.columns import Column
from sovfed.federation.text import steers

if TYPE_CHECKING:
    from collections.abc import Sequence

BINARY, CLASSES, LABELS, NUMBER, SURVIVAL = "binary", "classes", "labels", "number", "survival"
NEXT_TOKEN: Final = "next_token"  # noqa: S105  (a kind)
TARGETS: Final = (BINARY, CLASSES, LABELS, NUMBER, SURVIVAL, NEXT_TOKEN)
GIVEN, BYTES = "given", "bytes"  # of a window: tokens that another one predicts, and bytes of those that it predicts
MOST_BYTES: Final = 1 << 24  # of a window; a float32 holds all whole numbers up to it
LOSSES: Final = ("squared", "huber")
SHA256: Final = re.compile("[0-9a-f]{64}")
MAX_OUTPUTS: Final = 1_000
INTERVALS, MAX_INTERVALS = 10, 100
_NEEDED: Final[dict[str, tuple[str, ...]]] = {
    BINARY: ("column", "classes"),
    CLASSES: ("column", "classes"),
    LABELS: ("columns",),
    NUMBER: ("column", "low", "high"),
    SURVIVAL: ("time", "event", "high"),
    NEXT_TOKEN: ("tokenizer",),
}
_ALLOWED: Final[dict[str, tuple[str, ...]]] = {
    LABELS: ("true", "false"),
    NUMBER: ("unit", "loss", "plausible"),
    SURVIVAL: ("low", "unit", "intervals", "edges", "true", "false"),
}


@dataclass(frozen=True)
class Target:
    """What is learnt.

    binary    `column`, one of two `classes`; classes: one of several; labels: the boolean `columns`, all at once
    number    `column` in [low, high], by the `loss` squared or huber
    survival  the `time` column, in [low, high], to the boolean `event`, in `intervals` of equal length or between
              `edges` (as the schema's `unit`)
    next_token each token of a text given those before it, as the `tokenizer` of this digest cuts it
    """

    kind: str = choice(BINARY, TARGETS)
    column: str = bounded("", 0, 64)
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    time: str = bounded("", 0, 64)
    event: str = bounded("", 0, 64)
    low: float | None = bounded(None, -1e30, 1e30)
    high: float | None = bounded(None, -1e30, 1e30)
    unit: str = bounded("", 0, 32)
    intervals: int | None = bounded(None, 1, MAX_INTERVALS)
    edges: tuple[float, ...] = ()
    loss: str = choice("squared", LOSSES)
    plausible: tuple[float, ...] = ()
    true: tuple[str, ...] = ()
    false: tuple[str, ...] = ()
    tokenizer: str = bounded("", 0, 64, doc="SHA-256 of the tokenizer's file")

    def __post_init__(self) -> None:
        needed, allowed = _NEEDED[self.kind], _ALLOWED.get(self.kind, ())
        for name in needed:
            if getattr(self, name) in ("", (), None):
                raise ValueError(f"kind '{self.kind}' needs '{name}'")
        for item in dataclasses.fields(self):
            if item.name not in ("kind", *needed, *allowed) and getattr(self, item.name) != item.default:
                raise ValueError(f"'{item.name}' is not for kind '{self.kind}'")
        if self.kind == BINARY and len(self.classes) != 2:
            raise ValueError(f"{len(self.classes)} classes, kind 'binary' has two; take kind 'classes' for more")
        if self.kind == CLASSES and not 2 <= len(self.classes) <= MAX_OUTPUTS:
            raise ValueError(f"{len(self.classes)} classes, expected 2 to {MAX_OUTPUTS}")
        if self.kind == LABELS and not 2 <= len(self.columns) <= MAX_OUTPUTS:
            raise ValueError(f"{len(self.columns)} labels, expected 2 to {MAX_OUTPUTS}; take kind 'binary' for one")
        if self.kind == SURVIVAL:
            self._check_cuts()
        if self.tokenizer and not SHA256.fullmatch(self.tokenizer):
            raise ValueError(f"'tokenizer' is {self.tokenizer!r}, expected a SHA-256: `sovfed task tokenizer` tells it")

    @property
    def cuts(self) -> tuple[float, ...]:
        """Where the intervals of survival begin and end, K + 1 of them for K intervals."""
        steps = self.intervals or INTERVALS
        low, high = self.low or 0.0, self.high or 0.0
        return self.edges or tuple(low + (high - low) * step / steps for step in range(steps + 1))

    def _check_cuts(self) -> None:
        if self.edges and self.intervals is not None:
            raise ValueError("give 'intervals' or 'edges', not both")
        rising = all(low < high for low, high in pairwise(np.array(self.cuts, np.float32)))  # as records are stored
        if not (2 <= len(self.cuts) <= MAX_INTERVALS + 1 and rising) or self.cuts[-1] > (self.high or 0.0):
            raise ValueError(f"edges: expected 2 to {MAX_INTERVALS + 1} rising numbers, none above 'high'")

    def to_columns(self, inputs: Sequence[Column] = ()) -> tuple[Column, ...]:
        """The columns of the schema whose inputs are `inputs`."""
        bounds = {"low": self.low or 0.0, "high": self.high, "unit": self.unit}
        words = {"true": self.true, "false": self.false}
        match self.kind:
            case "labels":
                return tuple(_column(name, kind="boolean", role="target", **words) for name in self.columns)
            case "number":
                return (_column(self.column, role="target", plausible=self.plausible, **bounds),)
            case "survival":
                event = _column(self.event, kind="boolean", role="target", **words)
                return _column(self.time, role="target", scaling="none", **bounds), event
            case "next_token":
                longest = max((column.size for column in inputs), default=0)
                given = _column(GIVEN, role="target", low=0.0, high=max(1.0, longest - 2.0), scaling="none")
                return given, _column(BYTES, role="target", low=0.0, high=float(MOST_BYTES), scaling="none")
            case _:
                return (_column(self.column, kind="category", categories=self.classes, role="target"),)


def _column(name: str, **values: Any) -> Column:
    """A target's column. Raises ValueError, which the binding of the file names the place of."""
    if not 1 <= len(name) <= 64 or steers(name):
        raise ValueError(f"target: the column's name {name[:64]!a} must have 1 to 64 characters")
    return Column(name, **values)
