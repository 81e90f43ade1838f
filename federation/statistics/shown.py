"""A table of statistics, or of scores, in plain words. Whoever checks a signed one has no NumPy."""

from __future__ import annotations

import math
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDE: Final = 1.96  # standard deviations to either side: 95 %


def lines_of(table: dict[str, Any]) -> Iterator[str]:
    """The table for people, a line each: counts, or models with their scores."""
    if "models" in table:
        yield from _scores(table)
        return
    noise = WIDE * table["noise_deviation"]
    yield f"{_told(table['persons'])} persons; each count is ± {noise:.0f} (95 %); below {table['least']} none is shown"
    if "cut_at" in table:
        yield f"at most {_told(table['cut_at'])} of a count are one institution's: larger counts may be too small"
    for column in table["columns"]:
        unit = f" {column['unit']}" if column["unit"] else ""
        yield f"{column['name']}{unit and f' ({unit.strip()})'}"
        if "mean" in column:
            yield f"  mean {_figure(column, 'mean')}{unit}, standard deviation {_figure(column, 'deviation')}{unit}"
            shares = (f"{share}: {_value(column, value)}" for share, value in column["quantiles"].items())
            yield f"  quantiles  {'  '.join(shares)}"
        if column.get("apart") is not None:
            apart, within = column["apart"], column["apart_within"]
            word = "sites differ" if apart > within else "no difference between sites can be told"
            yield f"  between sites {apart:.3f} ± {within:.3f} (0: all alike): {word}"
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
    return f"{date(1970, 1, 1) + timedelta(days=round(value))}"


def _noise(entry: dict[str, Any]) -> str:
    return f" ± {WIDE * entry['noise_deviation']:.0f}, each sum of scores too"


def _scores(table: dict[str, Any]) -> Iterator[str]:
    """Models, the best by the headline metric first; an interval of 95 % where the sums tell one."""
    headline = table["headline"]
    sign = 1 if headline in table["smaller"] else -1

    def place(entry: dict[str, Any]) -> float:
        return sign * float(entry["metrics"].get(headline, math.inf * sign))

    for entry in sorted(table["models"], key=place):
        model, records = entry["model"], entry["records"]
        kind, noise = ("records", "") if "noise_deviation" not in entry else ("persons", _noise(entry))
        count = f"too few held-out {kind} to tell" if records is None else f"{records:,} held-out {kind}{noise}"
        yield f"{model['name']}  {model['sha256'][:12]}…  {count}"
        for name, value in entry["metrics"].items():
            within = entry["intervals"].get(name)
            yield f"  {name.ljust(13)}  {value:.4f}" + (f"  ({within[0]:.4f} to {within[1]:.4f})" if within else "")
