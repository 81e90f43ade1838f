"""`sovfed bench privacy`: what privacy costs in accuracy, by who adds the noise. Digits, 8 institutions, δ = 1e-4.

    central      a trusted curator: all records in one place, the same private steps, noise added once
    distributed  shares of the noise at the institutions, added up by the real secure aggregation
    silo         each institution adds all the noise itself

All three take the same number of private steps at the same sampling rate with the same clip, start at the same model,
and are scored on the same held-out records. Step sizes were chosen on these records at other seeds, for `silo` its own
best, so the accuracies are a little optimistic, for all three alike. A deployment would not tell the accuracy at all.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data import Records, load_records
from sovfed.clients.private import PrivateTraining
from sovfed.clients.training import LocalTraining
from sovfed.federation.compose import compose
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import Vector
from sovfed.federation.tasks import get_task, initial_vector, public_scale
from sovfed.server.privacy import PrivacyPlan
from sovfed.simulations.baselines import exact, merge
from sovfed.simulations.benchmarks.report import Bars, Column, Report, check_paths, conditions, publish
from sovfed.simulations.federation import simulate, sites

if TYPE_CHECKING:
    from rich.console import Console

INSTITUTIONS: Final = 8
STEPS: Final = 100
LOCAL_STEPS: Final = 10  # of a silo in a round
EPSILONS: Final = (8.0, 3.0, 1.0)
MECHANISMS: Final = ("central", "distributed", "silo")
STEP_SIZE: Final = 4.0
SILO_STEP_SIZE: Final = {8.0: 4.0, 3.0: 2.0, 1.0: 1.0}  # by ε


def run(
    quick: bool, json_path: Path | None, csv_path: Path | None, plot_path: Path | None, console: Console
) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds."""
    check_paths(json_path, csv_path, plot_path)
    measured_in, seeds = conditions(quick=quick), range(100, 103 if quick else 105)
    rows = []
    for epsilon in EPSILONS:
        for mechanism in MECHANISMS:
            with console.status(f"ε = {epsilon:g}, {mechanism}"):
                rows.append(_measure(epsilon, mechanism, seeds))
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
    return publish(report, console, json_path, csv_path, plot_path)


COLUMNS: Final = (
    Column("epsilon", "ε"),
    Column("mechanism", "mechanism"),
    Column("seeds", "seeds"),
    Column("accuracy_mean", "accuracy, mean", "{:.3f}".format),
    Column("accuracy_min", "min", "{:.3f}".format),
    Column("accuracy_max", "max", "{:.3f}".format),
    Column("noise_multiplier", "noise multiplier", "{:.3f}".format),
    Column("seconds_mean", "seconds", "{:.1f}".format),
)


def _measure(epsilon: float, mechanism: str, seeds: range) -> dict[str, Any]:
    found = []
    for seed in seeds:
        started = time.monotonic()
        accuracy, multiplier = _train(epsilon, mechanism, seed)
        found.append((accuracy, multiplier, time.monotonic() - started))
    accuracies = [accuracy for accuracy, _, _ in found]
    return {
        "epsilon": epsilon,
        "mechanism": mechanism,
        "seeds": len(found),
        "steps": STEPS,
        "accuracy_mean": statistics.mean(accuracies),
        "accuracy_min": min(accuracies),
        "accuracy_max": max(accuracies),
        "noise_multiplier": found[0][1],
        "seconds_mean": statistics.mean(seconds for _, _, seconds in found),
    }


def configure(epsilon: float, mechanism: str, seed: int, population: int = 1) -> Config:
    """The run's configuration; `population` persons are declared."""
    silo = mechanism == "silo"
    step_size = SILO_STEP_SIZE[epsilon] if silo else STEP_SIZE
    return compose(
        [
            "task=digits", f"task.learning_rate={step_size}", f"simulation.institutions={INSTITUTIONS}", f"seed={seed}",
            f"rounds={STEPS // LOCAL_STEPS if silo else STEPS}", f"privacy.local_steps={LOCAL_STEPS}",
            f"privacy={'silo' if mechanism != 'distributed' else mechanism}", f"privacy.epsilon={epsilon}",
            "privacy.delta=1e-4", "privacy.sampling_rate=1.0", "privacy.clip=0.3", "privacy.spare_steps=0",
            f"privacy.population={population}", f"server.min_cohort={INSTITUTIONS}",
        ]
    ).config  # fmt: skip


def _train(epsilon: float, mechanism: str, seed: int) -> tuple[float, float]:
    """Held-out accuracy of one run, and its noise multiplier."""
    task, data = get_task("digits"), sites(configure(epsilon, mechanism, seed))
    union = merge([load_records(task, part) for part in data])
    config = configure(epsilon, mechanism, seed, len(union.train))
    if mechanism == "central":
        model, multiplier = _central(config, union)
    else:
        with tempfile.TemporaryDirectory() as folder:
            outcome = simulate(config, data, Path(folder))
        model, multiplier = outcome.model, float(outcome.summary["privacy"]["noise_multiplier"])
    engine = LocalTraining(task, union, site="", device="cpu")
    logits = engine.logits(model, public_scale(task), union.test)
    return exact("accuracy", logits, union.labels[union.test]) or 0.0, multiplier


def _central(config: Config, union: Records) -> tuple[Vector, float]:
    """The same steps by one institution that holds everything, and so adds the noise once."""
    task = get_task("digits")
    config = dataclasses.replace(config, rounds=1, privacy=dataclasses.replace(config.privacy, local_steps=STEPS))
    plan = PrivacyPlan.make(config, "central", task.parameters)
    training = PrivateTraining(task, union, site="", device="cpu", ledger=None)
    start = initial_vector(task, config.seed)
    request = dataclasses.replace(
        plan.request("central", 1, start), batch=config.privacy.sampling_rate * config.privacy.population
    )
    update = training.update(request, room=0).vector
    if update.dtype != np.float32:
        raise ConfigError("a central run releases its model, not a sum")
    return (start + update).astype(np.float32), plan.noise_multiplier
