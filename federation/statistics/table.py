"""The table that is told of a noised sum: counts, missing values, means, deviations, quantiles, cross tables.

Everything is computed from the noised vector, so it costs no privacy. A count below the question's `least` is not
shown, nor what rests on so few persons; whoever has the vector can compute it, and learns what the noise lets.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.tasks.columns import EPOCH, REFUSE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from sovfed.federation.statistics.question import Block, Question
    from sovfed.federation.tasks.columns import Column

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
WIDE: Final = 1.96  # standard deviations to either side: 95 %


def table_of(
    question: Question, vector: npt.NDArray[Any], deviation: float, least: int | None = None
) -> dict[str, Any]:
    """What `vector` (shape [size]) tells, as plain values; `deviation` is that of the noise of each of its values.

    Counts from `least` on are shown, the question's unless given, and none that the noise cannot be told from.
    """
    vector = vector.astype(np.float64)
    least = max(question.least if least is None else least, math.ceil(WIDE * deviation))
    columns = [_column(question, block, vector, deviation, least) for block in question.blocks if _single(block)]
    crosses = [_cross(question, block, vector, least) for block in question.blocks if not _single(block)]
    return {
        "persons": _shown(vector[0], least), "columns": columns, "crosses": crosses,
        "noise_deviation": deviation, "least": least,
    }  # fmt: skip


def lines_of(table: dict[str, Any]) -> Iterator[str]:
    """The table for people, a line each: counts, or models with their scores."""
    if "models" in table:
        yield from _scores(table)
        return
    noise = WIDE * table["noise_deviation"]
    yield f"{_told(table['persons'])} persons; each count is ± {noise:.0f} (95 %); below {table['least']} none is shown"
    for column in table["columns"]:
        unit = f" {column['unit']}" if column["unit"] else ""
        yield f"{column['name']}{unit and f' ({unit.strip()})'}"
        if "mean" in column:
            yield f"  mean {_figure(column, 'mean')}{unit}, standard deviation {_figure(column, 'deviation')}{unit}"
            shares = (f"{share}: {_value(column, value)}" for share, value in column["quantiles"].items())
            yield f"  quantiles  {'  '.join(shares)}"
        width = max(map(len, column["cells"]))
        for cell, count in column["cells"].items():
            yield f"  {cell.ljust(width)}  {_told(count)}"
    for cross in table["crosses"]:
        yield f"{cross['rows']} × {cross['columns']}"
        width = max(map(len, cross["cells"]))
        told = {row: {name: _told(count) for name, count in line.items()} for row, line in cross["cells"].items()}
        names = list(next(iter(told.values())))
        widths = [max(len(name), *(len(line[name]) for line in told.values())) for name in names]
        heads = (name.rjust(size) for name, size in zip(names, widths, strict=True))
        yield f"  {' ' * width}  {'  '.join(heads)}"
        for row, line in told.items():
            counts = (line[name].rjust(size) for name, size in zip(names, widths, strict=True))
            yield f"  {row.ljust(width)}  {'  '.join(counts)}"


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
    return told


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


def _told(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _figure(column: dict[str, Any], name: str) -> str:
    value, within = column[name], column.get(f"{name}_within")
    if value is None:
        return "–"
    if column["kind"] == "date":
        days = "" if within is None else f" ± {within:.0f} days"
        return f"{value:.0f} days" if within is None else f"{_value(column, value)}{days}"
    return f"{value:.4g}" + ("" if within is None else f" ± {within:.2g}")


def _value(column: dict[str, Any], value: float | None) -> str:
    if value is None:
        return "–"
    if column["kind"] != "date":
        return f"{value:.4g}"
    return f"{EPOCH + timedelta(days=round(value))}"


def _scores(table: dict[str, Any]) -> Iterator[str]:
    """Models, the best by the headline metric first; an interval of 95 % where the sums tell one."""
    headline = table["headline"]
    sign = 1 if headline in table["smaller"] else -1

    def place(entry: dict[str, Any]) -> float:
        return sign * float(entry["metrics"].get(headline, math.inf * sign))

    for entry in sorted(table["models"], key=place):
        model, records = entry["model"], entry["records"]
        count = "too few held-out records to tell" if records is None else f"{records:,} held-out records"
        yield f"{model['name']}  {model['sha256'][:12]}…  {count}"
        for name, value in entry["metrics"].items():
            within = entry["intervals"].get(name)
            yield f"  {name.ljust(13)}  {value:.4f}" + (f"  ({within[0]:.4f} to {within[1]:.4f})" if within else "")
