"""Is the federation worth it? Each task over several seeds: pooled, each institution alone (mean), federated.

Held-out records of all institutions together, exact metrics. Institutions, coordinator and training are the deployed
code over the in-memory Grid, and `tests/deploy/test_seam.py` holds a deployment to the same model.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.compose import compose
from sovfed.simulations.baselines import Comparison, compare
from sovfed.simulations.benchmarks.report import Bars, Column, Report, check_paths, conditions, publish
from sovfed.simulations.federation import simulate, sites

if TYPE_CHECKING:
    from rich.console import Console

SEEDS: Final = (0, 1, 2, 3, 4)
MODELS: Final = ("pooled", "alone", "federated")
COLUMNS: Final = (
    Column("task", "task"),
    Column("model", "model"),
    Column("metric", "metric"),
    Column("mean", "mean", "{:.4f}".format),
    Column("low", "lowest", "{:.4f}".format),
    Column("high", "highest", "{:.4f}".format),
    Column("seeds", "seeds"),
)


def run(
    *,
    heart: Path | None,
    pneumonia: Path | None,
    quick: bool,
    json_path: Path | None,
    csv_path: Path | None,
    plot_path: Path | None,
    console: Console,
) -> dict[str, Any]:
    """Measure all tasks that have data (folders `heart`, `pneumonia`) and publish the report."""
    check_paths(json_path, csv_path, plot_path)
    choices = {"breast_cancer": ["task=breast_cancer"], "digits": ["task=digits"]}
    if heart is not None:
        choices["heart"] = ["task=heart", f"data.path={heart}"]
    if pneumonia is not None:
        choices["pneumonia"] = ["experiment=pneumonia", f"data.path={pneumonia}"]
    seeds = SEEDS[:2] if quick else SEEDS
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for task, overrides in choices.items():
        found = [_compare([*overrides, f"seed={seed}"]) for seed in seeds]
        values = {
            "pooled": [one.pooled for one in found],
            "alone": [one.alone_mean for one in found],
            "federated": [one.federated for one in found],
        }
        rows += [_row(task, model, found[0].metric, values[model]) for model in MODELS]
        means = {model: statistics.mean(values[model]) for model in MODELS}
        ratios[f"{task}_federated_over_alone"] = means["federated"] / means["alone"]
        ratios[f"{task}_federated_over_pooled"] = means["federated"] / means["pooled"]
    bars = Bars("mean", "low", "high", group="task", series="model", label="metric on held-out records")
    report = Report(
        "Pooled, alone and federated", COLUMNS, rows, ratios, conditions=conditions(seeds=len(seeds)), bars=bars
    )
    return publish(report, console, json_path, csv_path, plot_path)


def _compare(overrides: list[str]) -> Comparison:
    config = compose(overrides).config
    data = sites(config)
    with tempfile.TemporaryDirectory() as folder:
        outcome = simulate(config, data, Path(folder))
    return compare(config, data, outcome.model, outcome.scale)


def _row(task: str, model: str, metric: str, values: list[float]) -> dict[str, Any]:
    return {
        "task": task,
        "model": model,
        "metric": metric,
        "mean": statistics.mean(values),
        "low": min(values),
        "high": max(values),
        "seeds": len(values),
    }
