"""Curves of a run as data for `plot.html`: points in the units of a small drawing, with the words of its axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 420.0, 190.0, 48.0, 24.0, 10.0, 74.0
LINE: Final = 12.0  # between two names
MOST: Final = 3  # curves in a drawing: so many kinds of line can be told apart without colour
POINTS: Final = 300  # of a curve; of a longer run every n-th round is drawn
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """`points` is what a polyline takes; `x`, `y` are where its name stands."""

    name: str
    points: str
    x: float
    y: float


@dataclass(frozen=True)
class Plot:
    """A drawing: `words` say what it shows to whoever cannot see it."""

    title: str
    curves: tuple[Curve, ...]
    ticks: tuple[tuple[float, str], ...]
    first: str
    end: str
    words: str


def plots(lines: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Loss, the task's metrics and seconds by round; what a private run does not tell is left out."""
    lines = lines[:: max(1, len(lines) // POINTS)]
    metrics = dict.fromkeys(name for line in lines for name in line["metrics"] if name not in ("loss", "brier"))
    losses = {
        "training": _points((line["round"], line["train_loss"]) for line in lines),
        "held out": _points((line["round"] - 1, line["metrics"].get("loss")) for line in lines),
    }
    held_out = {
        name: _points((line["round"] - 1, line["metrics"].get(name)) for line in lines) for name in [*metrics][:MOST]
    }
    seconds = {"round": _points((line["round"], line["seconds"]) for line in lines)}
    titles = (("Loss", losses), ("Held-out metrics of all institutions", held_out), ("Seconds a round", seconds))
    return [plot for title, curves in titles if (plot := draw(title, curves)) is not None]


def draw(title: str, curves: Mapping[str, Points]) -> Plot | None:
    """The drawing of `curves`, None if they have no two points."""
    told = {name: points for name, points in curves.items() if len(points) > 1}
    if not told:
        return None
    xs = [x for points in told.values() for x, _ in points]
    ys = [y for points in told.values() for _, y in points]
    low, high = min(ys), max(ys)
    spread = high - low or max(abs(high), 1.0)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - min(xs)) / (max(xs) - min(xs) or 1.0)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - (y - low) / spread * (HEIGHT - BOTTOM - TOP)

    ends = {name: at(*points[-1]) for name, points in told.items()}
    heights = _apart({name: y for name, (_, y) in ends.items()})
    drawn = tuple(
        Curve(name, " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points)), x_end, heights[name])
        for (name, points), (x_end, _) in zip(told.items(), ends.values(), strict=True)
    )
    ticks = tuple((at(xs[0], value)[1], f"{value:.3g}") for value in (low, low + spread / 2, low + spread))
    words = "; ".join(
        f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g} over {len(points)} points"
        for name, points in told.items()
    )
    return Plot(title, drawn, ticks, f"{min(xs):g}", f"{max(xs):g}", words)


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """Where names stand beside the ends of their curves, none over another."""
    lowest, placed = HEIGHT - BOTTOM - LINE * (len(heights) - 1), dict[str, float]()
    above = -math.inf
    for number, name in enumerate(sorted(heights, key=heights.__getitem__)):
        above = placed[name] = max(min(heights[name], lowest + LINE * number), above + LINE)
    return {name: y + 4.0 for name, y in placed.items()}


def _points(pairs: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in pairs if y is not None and math.isfinite(y)]
