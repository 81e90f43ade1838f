"""The table that is told of a noised sum: counts, missing values, means, deviations, quantiles, cross tables.

Everything is computed from the noised vector, so it costs no privacy. A count below the question's `least` is not
shown, nor what rests on so few persons; whoever has the vector can compute it, and learns what the noise lets.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.statistics.shown import WIDE
from sovfed.federation.tasks.columns import REFUSE

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.federation.statistics.question import Block, Question
    from sovfed.federation.tasks.columns import Column

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


def table_of(
    question: Question,
    vector: npt.NDArray[Any],
    deviation: float,
    least: int | None = None,
    most: int | None = None,
) -> dict[str, Any]:
    """What `vector` (shape [size]) tells, as plain values; `deviation` is that of the noise of each of its values.

    Counts from `least` on are shown, the question's unless given, and none that the noise cannot be told from. `most`
    is the largest that one institution can tell: only where there is no such count was surely none cut to it.
    """
    vector = vector.astype(np.float64)
    least = max(question.least if least is None else least, math.ceil(WIDE * deviation))
    columns = [_column(question, block, vector, deviation, least) for block in question.blocks if _single(block)]
    crosses = [_cross(question, block, vector, least) for block in question.blocks if not _single(block)]
    return {
        "persons": _shown(vector[0], least), "columns": columns, "crosses": crosses,
        "noise_deviation": deviation, "least": least,
        **({} if most is None or vector.max() < most else {"cut_at": most}),
    }  # fmt: skip


def _single(block: Block) -> bool:
    return len(block.columns) == 1


def _column(question: Question, block: Block, vector: npt.NDArray[Any], deviation: float, least: int) -> dict[str, Any]:
    column = block.columns[0]
    counts = vector[block.start : block.end]
    cells = {name: _shown(count, least) for name, count in zip(question.cells(column), counts, strict=True)}
    told: dict[str, Any] = {"name": column.name, "kind": column.kind, "unit": column.unit, "cells": cells}
    if block.moments:
        absent = counts[-1] if column.missing != REFUSE else 0.0
        told |= _moments(column, vector[0] - absent, vector[block.end : block.end + 2], deviation, least)
        told["quantiles"] = _quantiles(question, column, counts, least)
    if question.sites:
        spread = float(vector[question.between + question.columns.index(column)])
        told["apart"], told["apart_within"] = _apart(counts, spread, float(vector[0]), deviation, least)
    return told


def _apart(
    counts: npt.NDArray[Any], spread: float, persons: float, noise: float, least: int
) -> tuple[float | None, float | None]:
    """How far the sites' shares of the cells are from those of all, Σn‖p − P‖²/N, with half of its 95 % interval.

    0: all alike; at most 1 − 1/sites. It is 2Σ(Σk²/2n)/N − ΣK²/N², where what noise adds to ΣK² is taken off. Its
    variance is that of the noise in spread, counts and persons, to first order, and of its squares.
    """
    if persons < max(least, 1):
        return None, None
    square = (float(counts @ counts) - len(counts) * noise**2) / persons**2
    apart = 2 * spread / persons - square
    variance = noise**2 * (1 + max(square, 0.0) + max(square, 0.0) ** 2 / 4) + noise**4 * len(counts) / 2 / persons**2
    return apart, WIDE * 2 / persons * math.sqrt(variance)


def _moments(column: Column, present: float, sums: npt.NDArray[Any], noise: float, least: int) -> dict[str, Any]:
    """Mean, with half of its 95 % interval, and standard deviation in the column's unit; None of too few."""
    if present < max(least, 1):
        return {"mean": None, "mean_within": None, "deviation": None}
    low, high = column.bounds
    first, second = sums / present
    mean = float(np.clip(first, -0.5, 0.5))
    within = WIDE * noise / present * math.sqrt(1 + 2 * mean**2)
    spread = float(second) - mean**2
    return {
        "mean": low + (mean + 0.5) * (high - low), "mean_within": within * (high - low),
        "deviation": math.sqrt(spread) * (high - low) if spread > 0 else None,
    }  # fmt: skip


def _quantiles(question: Question, column: Column, counts: npt.NDArray[Any], least: int) -> dict[str, float | None]:
    """Quantiles by the histogram, spread evenly within a bin."""
    edges = np.array(question.edges(column))
    below = np.concatenate([[0.0], np.cumsum(np.maximum(counts[: question.bins], 0.0))])
    if below[-1] < max(least, 1):
        return {f"{share:g}": None for share in QUANTILES}
    steps = np.arange(len(below)) * 1e-12  # where a bin is empty, its lower edge
    return {f"{share:g}": float(np.interp(share * below[-1], below + steps, edges)) for share in QUANTILES}


def _cross(question: Question, block: Block, vector: npt.NDArray[Any], least: int) -> dict[str, Any]:
    first, second = block.columns
    counts = vector[block.start : block.end].reshape(block.shape)
    cells = {
        row: {name: _shown(count, least) for name, count in zip(question.cells(second), line, strict=True)}
        for row, line in zip(question.cells(first), counts, strict=True)
    }
    return {"rows": first.name, "columns": second.name, "cells": cells}


def _shown(count: float, least: int) -> int | None:
    """A count to the next whole number; None where it is below `least`."""
    return round(float(count)) if count >= least else None
