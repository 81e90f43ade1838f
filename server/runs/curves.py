"""A run's rounds, as its folder has them, and their curves."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROUNDS: Final = "rounds.jsonl"
CURVES: Final = "curves.png"
APART: Final = ("loss", "brier")  # metrics that are not drawn beside the others


def read_rounds(folder: Path) -> list[dict[str, Any]]:
    """The rounds finished so far; a line that was being written when the coordinator or the machine died is left out.

    A power cut can leave a line of zeros, and what was lost with it is run again.
    """
    path = folder / ROUNDS
    rounds = list[dict[str, Any]]()
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            try:
                rounds.append(json.loads(line))
            except ValueError:
                break
    return rounds


def plot_curves(folder: Path) -> None:
    """Draw loss, the task's metrics and seconds by round into `curves.png`."""
    if read_rounds(folder):
        draw_curves(folder).savefig(folder / CURVES, dpi=120)


def draw_curves(folder: Path) -> Figure:
    """Loss, the task's metrics and seconds by round."""
    from matplotlib.figure import Figure

    lines = read_rounds(folder)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, metric, seconds = figure.subplots(1, 3)
    _draw_loss(loss, lines)
    _draw_metrics(metric, lines)
    _draw_seconds(seconds, lines)
    return figure


def _draw_loss(axes: Axes, lines: list[dict[str, Any]]) -> None:
    numbers = [line["round"] for line in lines]
    axes.plot(numbers, [_or_nan(line["train_loss"]) for line in lines], label="training")
    measured = [line for line in lines if line["metrics"]]  # of some rounds only, by `evaluate_every`
    held_out = [line["metrics"].get("loss", math.nan) for line in measured]
    axes.plot([line["round"] - 1 for line in measured], held_out, label="held out")
    axes.set(title="Loss", xlabel="round")
    axes.legend()


def _draw_metrics(axes: Axes, lines: list[dict[str, Any]]) -> None:
    measured = [line for line in lines if line["metrics"]]
    names = dict.fromkeys(name for line in measured for name in line["metrics"] if name not in APART)
    for name in names:
        values = [line["metrics"].get(name, math.nan) for line in measured]
        axes.plot([line["round"] - 1 for line in measured], values, label=name)
    axes.set(title="Held-out metrics of all institutions", xlabel="round")
    if names:
        axes.legend()


def _draw_seconds(axes: Axes, lines: list[dict[str, Any]]) -> None:
    numbers = [line["round"] for line in lines]
    if all(line["seconds_compute"] is not None for line in lines):
        compute = [line["seconds_compute"] for line in lines]
        axes.bar(numbers, compute, label="slowest institution's compute")
        axes.bar(numbers, [line["overhead_seconds"] for line in lines], bottom=compute, label="overhead")
    else:  # a private round: who computed how long is not told
        axes.bar(numbers, [line["seconds"] for line in lines], label="whole round")
    axes.set(title="Seconds per round", xlabel="round")
    axes.margins(y=0.35)  # the legend stands above the bars
    axes.legend(loc="upper center", fontsize="small")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
