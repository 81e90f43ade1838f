"""The figure of several runs: the panels that there is something to show in."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.simulations.compare import Group, Run, choose_metric, settings_text
from sovfed.simulations.compare_groups import group_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMED: Final = 12  # groups named at an axis
BAND: Final = 0.2  # opacity
LABEL: Final = 36  # letters on a line of a label
LEGEND_IN: Final = 0.085  # inches that a letter of the legend takes
KEY: Final = 7  # letters' room for a line's sample and the gap beside it


def plot(runs: Sequence[Run], path: Path, wanted: str | None = None) -> None:
    """Draw the runs into the PNG at `path`, by the metric `wanted` or the tasks' own. Raises ConfigError."""
    draw(runs, wanted).savefig(path, dpi=120)


def draw(runs: Sequence[Run], wanted: str | None = None) -> Figure:
    """What `plot` writes."""
    from matplotlib.figure import Figure

    metric, groups = choose_metric(runs, wanted), group_runs(runs)
    panels: list[Callable[[Axes, Sequence[Group], str], None]] = []
    if any(metric in line["metrics"] for run in runs for line in run.rounds):
        panels.append(_by_round)
    if len(groups) > 1 and any(run.epsilon is not None and metric in run.metrics for run in runs):
        panels.append(_by_epsilon)
    if any(metric in institution_metrics for run in runs for institution_metrics in run.by_institution.values()):
        panels.append(_by_institution)
    panels.append(_by_bytes)
    width, lines = 5.2 * len(panels), sum(_wrapped(group.label).count("\n") + 1 for group in groups)
    figure = Figure(figsize=(width, 3.8 + 0.16 * lines), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        panel(axis, groups, metric)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles and len(groups) > 1:
        entry = LEGEND_IN * (KEY + max(len(line) for label in labels for line in label.split("\n")))
        columns = max(1, min(len(labels), int(width / entry)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize="small")
    return figure


def _by_round(axis: Axes, groups: Sequence[Group], metric: str) -> None:
    """Mean of the metric after each round, with a standard deviation each side."""
    from matplotlib.ticker import MaxNLocator

    for number, group in enumerate(groups):
        curves = [_curve(run, metric) for run in group.runs]
        length = max(map(len, curves))
        padded = np.full((len(curves), length), math.nan)
        for row, curve in zip(padded, curves, strict=True):
            row[: len(curve)] = curve
        reported = ~np.isnan(padded).all(0)
        if not reported.any():
            continue
        rounds, values, color = np.flatnonzero(reported), padded[:, reported], f"C{number % 10}"
        mean, spread = np.nanmean(values, 0), np.nanstd(values, 0)
        if len(rounds) == 1:  # a private run tells of its end only
            axis.errorbar(rounds, mean, spread, label=_wrapped(group.label), color=color, marker="o", linestyle="")
            continue
        axis.plot(rounds, mean, label=_wrapped(group.label), color=color, linestyle=_style(number))
        axis.fill_between(rounds, mean - spread, mean + spread, color=color, alpha=BAND, linewidth=0)
    axis.set(title=f"{metric} by round, mean ± standard deviation", xlabel="round")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(run: Run, metric: str) -> list[float]:
    """The metric of the model after 0, 1, … rounds: a round's line tells that of the model it began with."""
    values = [line["metrics"].get(metric, math.nan) for line in run.rounds]
    return [*values, run.metrics.get(metric, math.nan)]


def _by_epsilon(axis: Axes, groups: Sequence[Group], metric: str) -> None:
    """Privacy and utility: the metric at each epsilon; without privacy as a line."""
    families: dict[str, list[tuple[float, float, float, str]]] = {}
    for number, group in enumerate(groups):
        spread, epsilon = group.spread(run.metrics.get(metric) for run in group.runs), group.spread(_epsilons(group))
        if spread is None:
            continue
        if epsilon is None:
            axis.axhline(spread[0], linestyle="--", color=f"C{number % 10}", label=_wrapped(group.label))
            continue
        alike = settings_text({key: value for key, value in group.values.items() if "epsilon" not in key})
        families.setdefault(alike, []).append((epsilon[0], *spread, group.label))
    for number, (alike, points) in enumerate(families.items()):
        epsilons, means, spreads, labels = zip(*sorted(points), strict=True)
        name = _wrapped(labels[0] if len(points) == 1 else alike or metric)
        marker = "os^Dv"[number % 5]
        axis.errorbar(epsilons, means, yerr=spreads, marker=marker, color="black", capsize=3, label=name)
    axis.set(title="Privacy and utility", xlabel="ε (smaller: more private)", ylabel=metric, xscale="log")
    ticks = sorted({point[0] for points in families.values() for point in points})
    axis.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axis.minorticks_off()
    axis.legend(fontsize="x-small")


def _epsilons(group: Group) -> list[float | None]:
    return [run.epsilon for run in group.runs]


def _by_institution(axis: Axes, groups: Sequence[Group], metric: str) -> None:
    """Every institution's own metric, all runs of a group together."""
    shown = [(group, _of_institutions(group, metric)) for group in groups]
    shown = [(group, values) for group, values in shown if values]
    axis.boxplot([values for _, values in shown], orientation="horizontal")
    for position, (_, values) in enumerate(shown, start=1):
        axis.plot(
            values, np.linspace(position - 0.12, position + 0.12, len(values)), ".", markersize=3, alpha=0.5, color="C0"
        )
    _name(axis, [group.label for group, _ in shown], range(1, len(shown) + 1))
    axis.set(title=f"{metric} of each institution", xlabel=metric)


def _of_institutions(group: Group, metric: str) -> list[float]:
    return [
        institution_metrics[metric]
        for run in group.runs
        for institution_metrics in run.by_institution.values()
        if metric in institution_metrics
    ]


def _by_bytes(axis: Axes, groups: Sequence[Group], metric: str) -> None:
    """Megabytes moved in a run."""
    totals = [np.mean([run.bytes_moved for run in group.runs]) / 1e6 for group in groups]
    axis.barh(range(1, len(groups) + 1), totals)
    _name(axis, [group.label for group in groups], range(1, len(groups) + 1))
    axis.set(title="MB moved in a run, up and down", xlabel="MB")


def _name(axis: Axes, labels: Sequence[str], places: Sequence[int]) -> None:
    shown = [_wrapped(label) if len(labels) <= MAX_NAMED else "" for label in labels]
    axis.set_yticks(list(places), shown, fontsize="x-small")
    axis.invert_yaxis()


def _wrapped(label: str) -> str:
    """The whole label in short lines: cut, two of them could read the same."""
    return textwrap.fill(label, LABEL)


def _style(number: int) -> str:
    return ("-", "--", ":", "-.")[number // 10 % 4]
