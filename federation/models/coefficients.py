"""The coefficients of a linear model, per column in the column's own unit: the model, told as a statistician does.

They come of the model and its scale alone. There are no standard errors: those need sums over records, which no
institution sends, and a fit that is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.models.outputs import CLASSES, LABELS, NUMBERS, RAW, SURVIVAL, Reading, kind_of
from sovfed.federation.tasks.columns import LOG
from sovfed.federation.tasks.columns import NUMBERS as PACKED_NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt
    from torch import Tensor

    from sovfed.federation.messages import Sums
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Column

    Floats = npt.NDArray[np.float64]

LINEAR: Final = {"weight", "bias"}  # the tensors of torch's Linear
INTERCEPT: Final = "(intercept)"
NO_ERRORS: Final = "no standard errors: the institutions send no sums that they could be made of"


@dataclass(frozen=True)
class Coefficient:
    """By how much an output grows with `of` the `column`; `ratio` is its exponential, where the output is log odds."""

    output: str
    column: str
    of: str
    value: float
    ratio: float | None


def coefficients(task: Task, tensors: Mapping[str, Tensor], scale: Sums) -> list[Coefficient]:
    """Of the model of `task` with these `tensors` and this `scale`; [] unless it is one linear layer over a table.

    A category's are beside its first word; those of several classes beside the first class.
    """
    kind = _kind(task, tensors)
    if kind == RAW:
        return []
    weights = tensors["weight"].detach().double().numpy()
    bias = tensors["bias"].detach().double().numpy()
    weights, bias, names = _by_output(task, kind, weights, bias, Reading(task, scale))
    return [line for each in zip(names, weights, bias, strict=True) for line in _of_output(task, kind, scale, *each)]


def linear(task: Task, tensors: Mapping[str, Tensor], scale: Sums) -> tuple[str, list[Coefficient]]:
    """What the `coefficients` are of, and they; ("", []) where there are none."""
    lines = coefficients(task, tensors, scale)
    return (meaning(task), lines) if lines else ("", [])


def meaning(task: Task) -> str:
    """What the coefficients of `task` are of."""
    targets = task.schema.targets
    match kind_of(task):
        case "classes" if len(task.schema.classes) == 2:
            no, yes = task.schema.classes
            return f"log odds of {targets[0].name} {yes}, not {no}, and the odds ratio"
        case "classes":
            return f"log odds of each {targets[0].name}, not {task.schema.classes[0]}, and the odds ratio"
        case "labels":
            return "log odds of each label, and the odds ratio"
        case "survival":
            return (
                f"log odds of {targets[1].name} in each interval of {targets[0].name}, of who has lived to it; the "
                "shorter an interval, the nearer is the odds ratio to the hazard ratio"
            )
        case _:
            return " and ".join(f"{column.name}{f', in {column.unit}' if column.unit else ''}" for column in targets)


def _kind(task: Task, tensors: Mapping[str, Tensor]) -> str:
    """What the outputs of one linear layer over packed columns are; `RAW` of any other model."""
    from torch import nn

    if task.build is None or set(tensors) != LINEAR or task.schema.shaped:
        return RAW
    return kind_of(task) if type(task.model()) is nn.Linear else RAW


def _by_output(
    task: Task, kind: str, weights: Floats, bias: Floats, reading: Reading
) -> tuple[Floats, Floats, list[str]]:
    """Weights [outputs, width], biases and names of what the model says, a number's in its own unit."""
    targets = task.schema.targets
    if kind == NUMBERS:
        width, middle = reading.width.double().numpy(), reading.middle.double().numpy()
        return weights * width[:, None], bias * width + middle, [column.name for column in targets]
    if kind == CLASSES and len(bias) > 1:
        return weights[1:] - weights[0], bias[1:] - bias[0], list(task.schema.classes[1:])
    if kind == CLASSES:
        return weights, bias, [task.schema.classes[1]]
    if kind == LABELS:
        return weights, bias, [column.name for column in targets]
    edges = [float(edge) for edge in task.metrics.edges]  # type: ignore[attr-defined]
    return weights, bias, [f"{low:g} to {high:g}" for low, high in pairwise(edges)]


def _of_output(task: Task, kind: str, scale: Sums, output: str, weights: Floats, bias: float) -> Iterator[Coefficient]:
    schema, place, intercept, lines = task.schema, 0, float(bias), list[tuple[str, str, float]]()
    middles, factors = task.transform.affine(scale).get(PACKED_NUMBERS, (np.zeros(0), np.zeros(0)))
    for column, middle, factor in zip(schema.numbers, middles, factors, strict=True):
        value = float(weights[place] * factor)
        intercept -= value * float(middle)
        lines.append((column.name, _unit(column), value))
        place += 1
    for column in schema.numbers:
        if column.indicator:
            filled = f"{column.fill:g}" if column.missing == "constant" else "the mean"
            lines.append((column.name, f"missing, not {filled}", float(weights[place])))
            place += 1
    for column in schema.codes:
        words = [*column.categories, *(["missing"] if column.missing == "category" else [])]
        first = float(weights[place])
        intercept += first
        for offset, word in enumerate(words[1:], start=1):
            lines.append((column.name, f"{word}, not {words[0]}", float(weights[place + offset]) - first))
        place += len(words)
    odds = kind in (CLASSES, LABELS, SURVIVAL)
    yield Coefficient(output, INTERCEPT, "", intercept, None)
    for name, of, value in lines:
        yield Coefficient(output, name, of, value, _exponential(value) if odds else None)


def _unit(column: Column) -> str:
    if column.kind == "boolean":
        return "yes, not no"
    if column.scaling == LOG:
        return f"per 1 of ln(1 + {column.name}{f' - {column.low:g}' if column.low else ''})"
    return "per day" if column.kind == "date" else f"per {column.unit or '1'}"


def _exponential(value: float) -> float:
    """Its exponential; of one too large to hold, infinity."""
    return math.exp(value) if value < 700 else math.inf
