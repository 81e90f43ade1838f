"""A run's rounds, as its folder has them, and their curves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve: TypeAlias = list[tuple[int, float]]  # round and value
ROUNDS: Final = "rounds.jsonl"
CURVES: Final = "curves.png"
UNTOLD: Final = "No institution tells a loss or a metric in this run"
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
                values = json.loads(line)
            except ValueError:
                break
            if not isinstance(values, dict):
                break
            rounds.append(values)
    return rounds


def plot_curves(folder: Path) -> None:
    """`draw_curves` into `curves.png`."""
    if read_rounds(folder):
        draw_curves(folder).savefig(folder / CURVES, dpi=120)


def draw_curves(folder: Path) -> Figure:
    """Loss, the task's metrics and seconds by round: a panel for each of them that the run tells of."""
    from matplotlib.figure import Figure

    lines = read_rounds(folder)
    of_loss, metrics = losses(lines), _metrics(lines)
    width = 11 if of_loss and metrics else 8
    figure = Figure(figsize=(width, 3.4), layout="constrained")
    panels = figure.subplots(1, 1 + bool(of_loss) + bool(metrics), squeeze=False)[0]
    if of_loss:
        _draw(panels[0], of_loss, "Loss")
    if metrics:
        _draw(panels[-2], metrics, "Held-out metrics of all institutions")
    _draw_seconds(panels[-1], lines)
    if not of_loss and not metrics:
        figure.suptitle(UNTOLD, fontsize="medium")
    return figure


def losses(lines: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The loss in training and the one held out by round, each if it is told."""
    curves = {
        "training": [(line["round"], line["train_loss"]) for line in lines if line["train_loss"] is not None],
        "held out": _measured(lines, "loss"),
    }
    return {name: curve for name, curve in curves.items() if curve}


def _metrics(lines: list[dict[str, Any]]) -> dict[str, Curve]:
    names = dict.fromkeys(name for line in lines for name in line["metrics"] if name not in APART)
    return {name: _measured(lines, name) for name in names}


def _measured(lines: Sequence[dict[str, Any]], name: str) -> Curve:
    """The metric after each round that it was measured in: a round's line tells that of the model it began with."""
    return [(line["round"] - 1, line["metrics"][name]) for line in lines if name in line["metrics"]]


def _draw(axes: Axes, curves: dict[str, Curve], title: str) -> None:
    for name, curve in curves.items():
        marker = "o" if len(curve) == 1 else None  # a line has two ends
        axes.plot([number for number, _ in curve], [value for _, value in curve], label=name, marker=marker)
    axes.set(title=title, xlabel="round")
    axes.legend()


def _draw_seconds(axes: Axes, lines: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = [line["round"] for line in lines]
    if all(line["seconds_compute"] is not None for line in lines):
        compute = [line["seconds_compute"] for line in lines]
        axes.bar(numbers, compute, label="slowest institution's compute")
        axes.bar(numbers, [line["overhead_seconds"] for line in lines], bottom=compute, label="overhead")
    else:  # a private round: who computed how long is not told
        axes.bar(numbers, [line["seconds"] for line in lines], label="whole round")
    axes.set(title="Seconds per round", xlabel="round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.35)  # the legend stands above the bars
    axes.legend(loc="upper center", fontsize="small")
