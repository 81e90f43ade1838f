"""Runs side by side: from the folders that runs leave behind to one table, grouped by everything but the seed."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.metrics import SMALLER_IS_BETTER
from sovfed.federation.schema import nearest
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.release import SUMMARY
from sovfed.server.runs.tracking import flatten
from sovfed.simulations.federation import OUTSIDE

if TYPE_CHECKING:
    from rich.table import Table

SAME: Final = ("seed", "run_name", "server.", "client.", "tracking.", "data.site")  # settings that make no other group
LEADING: Final = ("name", "mechanism", "enabled")  # of a group's settings: the one that the others follow
PLAN: Final = "sweep.json"  # in the folder of a sweep
WORST: Final = "worst"
RUNS: Final = "runs"  # folder of a deployment's runs


@dataclass(frozen=True)
class Run:
    """What a run's folder tells. `metrics` are the final model's on all held-out records; {} while it is unfinished."""

    name: str
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)  # flat, by dotted key
    rounds: list[dict[str, Any]] = field(default_factory=list)  # the lines of rounds.jsonl
    metrics: dict[str, float] = field(default_factory=dict)
    by_institution: dict[str, dict[str, float]] = field(default_factory=dict)
    headline: str = ""
    epsilon: float | None = None
    seconds: float = 0.0
    finished: bool = False

    @property
    def bytes_moved(self) -> int:
        """Bytes up and down, all rounds and institutions."""
        return sum(line["bytes_up"] + line["bytes_down"] for line in self.rounds)

    def worst(self, metric: str) -> float | None:
        """The metric of the institution that fares worst (the largest, if it is a loss)."""
        values = [metrics[metric] for metrics in self.by_institution.values() if metric in metrics]
        return (max if metric in SMALLER_IS_BETTER else min)(values) if values else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed: `label` names them, `values` set them apart from the other groups."""

    label: str
    values: dict[str, Any]
    runs: list[Run]

    @property
    def settings(self) -> str:
        """`values` in words."""
        return settings_text(self.values)

    def spread(self, of: Iterable[float | None]) -> tuple[float, float] | None:
        """Mean and standard deviation (0 of one) over the group's runs; None if nothing is known."""
        values = [value for value in of if value is not None]
        if not values:
            return None
        return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`: a run's own folder, a sweep's, a demo's, or one of several runs. Raises ConfigError."""
    runs: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder")
        inside = list(_inside(folder))
        if not inside:
            raise ConfigError(f"{folder} holds no run: neither {SUMMARY} nor rounds.jsonl, nor folders with them")
        for run_folder in inside:
            runs[run_folder.resolve()] = _read(run_folder)
    return list(runs.values())


def _inside(folder: Path) -> Iterable[Path]:
    if (folder / "rounds.jsonl").exists():
        return [folder]
    if (folder / PLAN).exists():
        names = [run["name"] for run in json.loads((folder / PLAN).read_text(encoding="utf-8"))["runs"]]
        return [folder / name for name in names if (folder / name).is_dir()]
    places = [folder, folder / RUNS, folder / "agency" / RUNS]
    return [path.parent for parent in places for path in sorted(parent.glob("*/rounds.jsonl"))]


def _read(folder: Path) -> Run:
    try:
        rounds = read_rounds(folder)
        path = folder / SUMMARY
        if not path.exists():
            return Run(folder.name, folder, rounds=rounds)
        summary = json.loads(path.read_text(encoding="utf-8"))
        return Run(
            name=folder.name,
            folder=folder,
            config=_settings(summary["config"]),
            rounds=rounds,
            metrics=summary["metrics"] or summary.get(OUTSIDE, {}),
            by_institution=summary["metrics_by_institution"] or _beside_baselines(summary),
            headline=summary["metric"],
            epsilon=summary.get("epsilon"),
            seconds=summary["seconds_training"],
            finished=True,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder}: its files are not those of a run: {error!r}") from error


def _beside_baselines(summary: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The headline at each institution, which a simulation with baselines measured; {} of any other run."""
    rows = summary.get("by_institution", [])
    return {row["institution"]: {summary["metric"]: row["federated"]} for row in rows if row["federated"] is not None}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings by dotted key, without those of a mechanism that is off."""
    settings = flatten(config)
    off = settings.get("privacy.mechanism") == "none"
    return {
        key: value
        for key, value in settings.items()
        if not (off and key.startswith("privacy.") and key[8:] != "mechanism")
    }


def choose_metric(runs: Sequence[Run], wanted: str | None) -> str:
    """The metric to compare by: `wanted`, or the tasks' own headline. Raises ConfigError if there is none."""
    available = {name for run in runs for name in run.metrics}
    available |= {name for run in runs for line in run.rounds[-1:] for name in line["metrics"]}
    if wanted is not None:
        if wanted not in available:
            raise ConfigError(f"no run has the metric '{wanted}'{nearest(wanted, available)}")
        return wanted
    headlines = list(dict.fromkeys(run.headline for run in runs if run.headline in available))
    if len(headlines) > 1:
        raise ConfigError(f"the runs' tasks report {' and '.join(headlines)}: choose one with --metric")
    return headlines[0] if headlines else next((name for name in ("auc", "accuracy", "loss") if name in available), "")


def settings_text(values: dict[str, Any]) -> str:
    """`key=value, …` without the groups' names, and without what is null."""
    return ", ".join(f"{_short(key)}={_text(value)}" for key, value in values.items() if value is not None)


def telling(runs: Sequence[Run]) -> list[str]:
    """The settings that differ between finished runs, without those that follow from the one that leads their group."""
    runs = [run for run in runs if run.finished]
    keys = [key for key in dict.fromkeys(key for run in runs for key in run.config) if not key.startswith(SAME)]
    differing = [key for key in keys if len({_text(run.config.get(key)) for run in runs}) > 1]
    return [key for key in differing if not any(_follows(key, leader, runs) for leader in differing)]


def _follows(key: str, leader: str, runs: Sequence[Run]) -> bool:
    (above, _, name), (beside, _, leading) = key.rpartition("."), leader.rpartition(".")
    if above != beside or name in LEADING or leading not in LEADING:
        return False
    pairs = {(_text(run.config.get(leader)), _text(run.config.get(key))) for run in runs}
    return len(pairs) == len({value for value, _ in pairs})


def _short(key: str) -> str:
    above, _, name = key.rpartition(".")
    return above if name in LEADING else name


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def figures(group: Group, metric: str) -> dict[str, Any]:
    """A group's line: means over its runs, with `_sd` for the standard deviation."""
    line: dict[str, Any] = {"group": group.label, **group.values, "runs": len(group.runs)}
    line["finished"] = sum(run.finished for run in group.runs)
    line["rounds"] = max(len(run.rounds) for run in group.runs)
    parts: dict[str, list[float | None]] = {
        metric: [run.metrics.get(metric) for run in group.runs],
        f"worst_{metric}": [run.worst(metric) for run in group.runs],
        "epsilon": [run.epsilon for run in group.runs],
        "bytes_moved": [float(run.bytes_moved) for run in group.runs],
        "seconds": [run.seconds if run.finished else None for run in group.runs],
    }
    for name, values in parts.items():
        spread = group.spread(values)
        line[name], line[f"{name}_sd"] = spread or (None, None)
    return line


def table(groups: Sequence[Group], metric: str) -> Table:
    """The groups, a line each; the institution that fares worst, where any run tells of single institutions."""
    from rich.box import SIMPLE
    from rich.table import Table

    title = f"{metric}: mean ± standard deviation over runs" if metric else None
    lines = [figures(group, metric) for group in groups]
    worst = [WORST] if any(line[f"worst_{metric}"] is not None for line in lines) else []
    shown = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("group", min_width=16)
    for name in ("runs", "rounds", metric or "metric", *worst, "ε", "MB", "seconds"):
        shown.add_column(name, justify="right", no_wrap=True)
    for group, line in zip(groups, lines, strict=True):
        runs = str(line["runs"]) if line["finished"] == line["runs"] else f"{line['finished']} of {line['runs']}"
        shown.add_row(
            _titled(group), runs, str(line["rounds"]), _mean(line, metric, "{:.3f}"),
            *(_mean(line, f"worst_{metric}", "{:.3f}") for _ in worst), _only(line, "epsilon", "{:.2f}"),
            _only(line, "bytes_moved", "{:.2f}", 1e-6), _only(line, "seconds", "{:.1f}"),
        )  # fmt: skip
    if worst:
        shown.caption = f"{WORST}: {metric} of the institution that fares worst"
    return shown


def _titled(group: Group) -> str:
    """Its name, and below it the settings unless that says them."""
    return group.label if group.settings in group.label else f"{group.label}\n{group.settings}"


def _only(line: dict[str, Any], name: str, form: str, scale: float = 1.0) -> str:
    return "–" if line.get(name) is None else form.format(scale * line[name])


def _mean(line: dict[str, Any], name: str, form: str) -> str:
    mean, spread = _only(line, name, form), _only(line, f"{name}_sd", form)
    return f"{mean} ± {spread}" if line["finished"] > 1 and line.get(name) is not None else mean


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """A line a run: what sets it apart, its seed, and what came of it."""
    keys = telling(runs)
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    fixed = ("run", "finished", "rounds", "seed", "epsilon", "bytes_moved", "seconds")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fixed, *keys, *metrics])
        for run in runs:
            values = (run.name, run.finished, len(run.rounds), run.config.get("seed"), run.epsilon)
            writer.writerow([
                *values, run.bytes_moved, run.seconds, *(run.config.get(key) for key in keys),
                *(run.metrics.get(name) for name in metrics),
            ])  # fmt: skip
