"""Is the federation worth it? Each task over several seeds: pooled, each institution alone (mean), federated.

Held-out records of all institutions together, and of each, exact metrics. Institutions, coordinator and training are
the deployed code over the in-memory Grid, and `tests/deploy/test_seam.py` holds a deployment to the same model.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.compose import compose
from sovfed.federation.metrics import SMALLER_IS_BETTER
from sovfed.simulations.baselines import Comparison, compare_sites
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish
from sovfed.simulations.federation import institution_names, simulate, sites

if TYPE_CHECKING:
    from rich.console import Console

SEEDS: Final = (0, 1, 2, 3, 4)
FEWER: Final = 2  # seeds of --quick, and of the task that takes minutes
MODELS: Final = ("pooled", "alone", "federated")
ALL: Final = "all"
COLUMNS: Final = (
    Column("task", "task"),
    Column("institution", "institution"),
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
    statutes: Sequence[Path],
    quick: bool,
    files: Files,
    console: Console,
) -> dict[str, Any]:
    """Measure all tasks that have data (folders `heart`, `pneumonia`, `statutes`) and publish the report."""
    files.check()
    choices = {"breast_cancer": ["task=breast_cancer"], "digits": ["task=digits"]}
    if heart is not None:
        choices["heart"] = ["task=heart", f"data.path={heart}"]
    if pneumonia is not None:
        choices["pneumonia"] = ["experiment=pneumonia", f"data.path={pneumonia}"]
    for folder in statutes:
        choices[f"statutes_{folder.resolve().name}"] = ["experiment=statutes", f"data.path={folder}"]
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for task, overrides in choices.items():
        seeds = SEEDS[:FEWER] if quick or task.startswith("statutes") else SEEDS
        comparisons = [_compare([*overrides, f"seed={seed}"]) for seed in seeds]
        task_rows = _rows(task, institution_names(sites(compose(overrides).config)), comparisons)
        rows += task_rows
        means = {row["model"]: row["mean"] for row in task_rows if row["institution"] == ALL}
        for baseline in ("alone", "pooled"):
            better, worse = (
                ("federated", baseline) if comparisons[0].metric not in SMALLER_IS_BETTER else (baseline, "federated")
            )
            ratios[f"{task}_federated_over_{baseline}"] = means[better] / means[worse]
    bars = Bars(
        "mean", "low", "high", group="task", series="model", label="metric on held-out records",
        only=("institution", ALL),
    )  # fmt: skip
    report = Report("Pooled, alone and federated", COLUMNS, rows, ratios, conditions=conditions(), bars=bars)
    return publish(report, console, files)


def _compare(overrides: list[str]) -> Comparison:
    config = compose(overrides).config
    data = sites(config)
    with tempfile.TemporaryDirectory() as folder:
        outcome = simulate(config, data, Path(folder))
    return compare_sites(config, data, outcome.model, outcome.scale)


def _rows(task: str, names: Sequence[str], comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """All institutions together, then each by itself where its metric is defined."""
    together = {
        "pooled": [comparison.pooled for comparison in comparisons],
        "alone": [comparison.alone_mean for comparison in comparisons],
        "federated": [comparison.federated for comparison in comparisons],
    }
    rows = [_row(task, ALL, model, comparisons[0].metric, together[model]) for model in MODELS]
    for index, name in enumerate(names):
        for model in MODELS:
            values = [value for comparison in comparisons if (value := comparison.rows[index][model]) is not None]
            if values:
                rows.append(_row(task, name, model, comparisons[0].metric, values))
    return rows


def _row(task: str, institution: str, model: str, metric: str, values: list[float]) -> dict[str, Any]:
    return {
        "task": task,
        "institution": institution,
        "model": model,
        "metric": metric,
        "mean": statistics.mean(values),
        "low": min(values),
        "high": max(values),
        "seeds": len(values),
    }
