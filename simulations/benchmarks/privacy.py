"""`sovfed bench privacy`: what privacy costs in accuracy, by who adds the noise. Digits, 8 institutions, δ = 1e-4.

    central      a trusted curator: all records in one place, the same private steps, noise added once
    distributed  shares of the noise at the institutions, added up by the real secure aggregation
    silo         each institution adds all the noise itself

Softmax regression, whose 650 parameters noise hurts less than a perceptron's 2,410. All three have the same splits and
start, and are scored on the same held-out records. Each runs at its own best of one `GRID`, found by `tune` on these
very records in other runs: that was not private and is not paid for, so the accuracies are a little optimistic, for all
three alike. A deployment would not tell the accuracy at all.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data import Dataset, load_records
from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.private import PrivateTraining
from sovfed.federation.compose import compose
from sovfed.federation.config import Config, DataConfig
from sovfed.federation.messages import Vector
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.simulations.baselines import exact, labels_of, merge
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish
from sovfed.simulations.federation import simulate, sites

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

TASK: Final = "digits_linear"
INSTITUTIONS: Final = 8
EPSILONS: Final = (8.0, 3.0, 1.0)
MECHANISMS: Final = ("central", "distributed", "silo")
TUNED_ON: Final = 4  # runs of each setting


@dataclass(frozen=True)
class Setting:
    """Private steps, the bound on a person's gradient, and the step size: `stride` ÷ `clip`."""

    steps: int
    clip: float
    stride: float


GRID: Final = tuple(
    Setting(steps, clip, stride) for steps in (100, 200) for clip in (0.3, 1.0) for stride in (0.5, 1.0, 2.0, 4.0)
)
CURATOR: Final = {8.0: Setting(200, 0.3, 4.0), 3.0: Setting(200, 0.3, 2.0), 1.0: Setting(200, 0.3, 1.0)}
BEST: Final = {  # by `tune`; distributed differs from central by little noise, and takes its settings
    "central": CURATOR,
    "distributed": CURATOR,
    "silo": {8.0: Setting(200, 1.0, 1.0), 3.0: Setting(200, 1.0, 0.5), 1.0: Setting(100, 1.0, 0.5)},
}


def run(quick: bool, files: Files, console: Console) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds."""
    files.check()
    measured_in, runs = conditions(quick=quick), 3 if quick else 8
    rows = []
    for epsilon in EPSILONS:
        for mechanism in MECHANISMS:
            with console.status(f"ε = {epsilon:g}, {mechanism}"):
                rows.append(_measure(epsilon, mechanism, runs))
            console.print(
                f"[green]✓[/] ε = {epsilon:g}, {mechanism}: accuracy {rows[-1]['accuracy_mean']:.3f} "
                f"[dim]({rows[-1]['seconds_mean']:.1f} s a run)[/]"
            )
    report = Report(
        title=f"Privacy: held-out accuracy, digits, {INSTITUTIONS} institutions, δ = 1e-4",
        columns=COLUMNS,
        rows=rows,
        ratios={f"{row['mechanism']}_eps{row['epsilon']:g}": row["accuracy_mean"] for row in rows},
        conditions=measured_in,
        bars=Bars(
            "accuracy_mean", "accuracy_min", "accuracy_max", "epsilon", "mechanism", "held-out accuracy", log=False
        ),
    )
    return publish(report, console, files)


COLUMNS: Final = (
    Column("epsilon", "ε"),
    Column("mechanism", "mechanism"),
    Column("runs", "runs"),
    Column("steps", "steps"),
    Column("clip", "clip"),
    Column("step_size", "step size", "{:.3g}".format),
    Column("accuracy_mean", "accuracy, mean", "{:.3f}".format),
    Column("accuracy_min", "min", "{:.3f}".format),
    Column("accuracy_max", "max", "{:.3f}".format),
    Column("noise_multiplier", "noise multiplier", "{:.3f}".format),
    Column("seconds_mean", "seconds", "{:.1f}".format),
)


def _measure(epsilon: float, mechanism: str, runs: int) -> dict[str, Any]:
    setting, results = BEST[mechanism][epsilon], []
    for _ in range(runs):
        started = time.monotonic()
        accuracy, multiplier = _train(epsilon, mechanism, setting)
        results.append((accuracy, multiplier, time.monotonic() - started))
    accuracies = [accuracy for accuracy, _, _ in results]
    return {
        "epsilon": epsilon,
        "mechanism": mechanism,
        "runs": runs,
        "steps": setting.steps,
        "clip": setting.clip,
        "step_size": setting.stride / setting.clip,
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_min": min(accuracies),
        "accuracy_max": max(accuracies),
        "noise_multiplier": results[0][1],
        "seconds_mean": statistics.mean(seconds for _, _, seconds in results),
    }


def tune(console: Console) -> None:
    """Print the mean accuracy of every setting, best first, for a curator and for silos. Takes a quarter of an hour."""
    _, datasets = _records(GRID[0], 1.0)
    for epsilon in EPSILONS:
        for mechanism, places in (("central", [merge(datasets)]), ("silo", datasets)):
            scored = []
            for setting in GRID:
                with console.status(f"ε = {epsilon:g}, {mechanism}, {setting}"):
                    runs = [_score(_without_federation(epsilon, setting, places)[0], datasets) for _ in range(TUNED_ON)]
                scored.append((statistics.mean(runs), setting))
            scored.sort(key=lambda entry: -entry[0])
            for accuracy, setting in scored:
                console.print(f"ε = {epsilon:g}, {mechanism}: {accuracy:.4f} {setting}")


def configure(epsilon: float, mechanism: str, setting: Setting, population: int = 1) -> Config:
    """The run's configuration; `population` persons are declared, and everybody is in every step."""
    return compose(
        [
            f"task={TASK}", f"task.learning_rate={setting.stride / setting.clip}", f"rounds={setting.steps}",
            f"simulation.institutions={INSTITUTIONS}", f"server.min_cohort={INSTITUTIONS}", f"privacy={mechanism}",
            "privacy.local_steps=1", f"privacy.epsilon={epsilon}", "privacy.delta=1e-4", "privacy.sampling_rate=1.0",
            f"privacy.clip={setting.clip}", "privacy.spare_steps=0", f"privacy.population={population}",
        ]
    ).config  # fmt: skip


def _records(setting: Setting, epsilon: float) -> tuple[list[DataConfig], list[Dataset]]:
    data = sites(configure(epsilon, "silo", setting))
    return data, [load_records(get_task(TASK), source) for source in data]


def _train(epsilon: float, mechanism: str, setting: Setting) -> tuple[float, float]:
    """Held-out accuracy of one run, and its noise multiplier."""
    data, datasets = _records(setting, epsilon)
    if mechanism == "central":
        model, multiplier = _without_federation(epsilon, setting, [merge(datasets)])
        return _score(model, datasets), multiplier
    config = configure(epsilon, mechanism, setting, sum(len(dataset.train) for dataset in datasets))
    with tempfile.TemporaryDirectory() as folder:
        outcome = simulate(config, data, Path(folder))
    return _score(outcome.model, datasets), float(outcome.summary["privacy"]["noise_multiplier"])


def _score(model: Vector, datasets: list[Dataset]) -> float:
    """Accuracy on all held-out records."""
    task, union = get_task(TASK), merge(datasets)
    logits = LocalTraining(task, union, site="", device="cpu").logits(model, task.transform.public_scale, union.test)
    return exact("accuracy", logits, labels_of(task, union)[union.test]) or 0.0


def _without_federation(epsilon: float, setting: Setting, places: Sequence[Dataset]) -> tuple[Vector, float]:
    """The model, and its noise multiplier: the mean of steps that each of `places` releases with all of its noise."""
    task, persons = get_task(TASK), sum(len(dataset.train) for dataset in places)
    config = configure(epsilon, "silo", setting, persons)
    plan = PrivacyPlan.make(config, "alone", task.parameters)
    trainings = [PrivateTraining(task, dataset, site="", device="cpu", ledger=None) for dataset in places]
    model = initial_vector(task, config.seed)
    for number in range(1, setting.steps + 1):
        request = dataclasses.replace(plan.request("alone", number, model), batch=persons / len(places))
        updates = [training.update(request, room=0).vector for training in trainings]
        model = (model + np.mean(updates, axis=0)).astype(np.float32)
    return model, plan.noise_multiplier
