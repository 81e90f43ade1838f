"""`sovfed bench simulation`: CPU, wall, start-up and memory of simulated rounds, against Flower-Ray and pfl-research.

Systems take turns on the same records, models and hyper-parameters, each in a process of its own, one CPU thread:

    inprocess, vectorised   ours, with coordinator, checkpoints, round lines and the task's own metrics
    workers                 `inprocess` with a process a CPU, as Flower-Ray has an actor; the big workloads only
    bare                    a hand-written FedAvg loop
    flower_ray              Flower's own simulation, an actor a CPU, records and model cached in the actors
    pfl                     pfl-research's SimulatedBackend; its packages are installed into the user's cache folder at
                            first, or SOVFED_PFL_PYTHON names a python that has pfl 0.6; left out if there is neither

In a round each institution of the cohort evaluates the model on its held-out records and trains it for one epoch
(batches of 10, as in pfl-research's CIFAR-10 benchmark, whose model and 50 records an institution `cnn` has). CPU is
user and system time of the whole process tree, from the end of round 1 to the end of the last, over the client updates
in between. Start-up is from the process's start to the end of round 1. Memory is the proportional set size of the tree
after the last round. Ratios are of the medians over turns, peer ÷ ours.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.host.quiet import quiet_environment
from sovfed.simulations.benchmarks import process_tree
from sovfed.simulations.benchmarks.pfl_packages import pfl_packages
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish
from sovfed.simulations.benchmarks.simulators.workload import Job

if TYPE_CHECKING:
    from rich.console import Console

PFL_PYTHON: Final = "SOVFED_PFL_PYTHON"
SYSTEMS: Final = ("flower_ray", "pfl", "bare", "inprocess", "workers", "vectorised")
OURS: Final = ("inprocess", "vectorised")
TASKS: Final = {"logreg": "breast_cancer", "mlp": "digits", "cnn": "synthetic_images", "transformer": "synthetic_text"}
BIG: Final = ("cnn", "transformer")  # workloads of which a round takes seconds, and every institution has 50 records
EPOCHS, BATCH, SEED = 1, 10, 0
LEARNING_RATE: Final = 0.1
ROUNDS: Final = {"flower_ray": 8, "pfl": 40, "bare": 40, "inprocess": 40, "vectorised": 200}  # a turn, the first apart
BIG_UPDATES: Final = 50  # of a turn of a big workload
TIMEOUT_S: Final = 600.0
MB: Final = 1e6


@dataclass(frozen=True)
class Case:
    """A workload at a cohort."""

    workload: str
    cohort: int

    @property
    def institutions(self) -> int:
        return max(100, 2 * self.cohort)

    def rounds(self, system: str) -> int:
        """Rounds of a turn, the first apart."""
        return max(1, BIG_UPDATES // self.cohort) if self.workload in BIG else ROUNDS[system]

    def turns(self, quick: bool) -> int:
        if self.workload in BIG:
            return 3 if self.cohort < BIG_UPDATES else 2 if self.cohort == BIG_UPDATES else 1
        return 2 if quick else 3

    def takes(self, system: str) -> bool:
        """Whether `system` is measured: processes are of no use where an update takes a millisecond."""
        return system != "workers" or self.workload in BIG


@dataclass(frozen=True)
class Python:
    """An interpreter and what it is to import from, beside its own packages and ours."""

    program: str
    paths: tuple[str, ...] = ()


OWN: Final = Python(sys.executable)
QUICK: Final = (Case("mlp", 50),)
COHORTS: Final = (10, 50, 200)
FULL: Final = tuple(Case(workload, cohort) for workload in TASKS for cohort in COHORTS)


def run(
    quick: bool,
    files: Files,
    console: Console,
    more: Callable[[bool, Console], tuple[list[dict[str, Any]], dict[str, float]]],
) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds.

    `more` measures further rows and their ratios: `simulation_private.measured`.
    """
    files.check()
    started = time.monotonic()
    pythons = _pythons(console)
    rows = []
    for case in QUICK if quick else FULL:
        with tempfile.TemporaryDirectory(prefix="sovfed-bench-") as folder:
            job = make_job(case, Path(folder))
            systems = [system for system in pythons if case.takes(system)]
            turns_by_system: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
            for _ in range(case.turns(quick)):
                for system in systems:
                    turns_by_system[system].append(measure(system, job, case.rounds(system), console, pythons[system]))
        rows += [_row(case, system, turns) for system, turns in turns_by_system.items()]
    further, further_ratios = more(quick, console)
    report = Report(
        title="Simulated rounds; ms are of a client update",
        columns=COLUMNS,
        rows=rows + further,
        ratios=ratios(rows) | further_ratios,
        figures={"seconds_total": time.monotonic() - started},
        conditions=conditions(quick=quick),
        bars=Bars(
            "cpu_ms", "cpu_ms_min", "cpu_ms_max", "cohort", "system", "CPU of a client update, ms", panel="workload"
        ),
    )
    return publish(report, console, files)


def _pythons(console: Console) -> dict[str, Python]:
    """What each system runs on. Raises ConfigError if SOVFED_PFL_PYTHON is no program."""
    pythons = dict.fromkeys(SYSTEMS, OWN)
    if named := os.environ.get(PFL_PYTHON):
        if shutil.which(named) is None:
            raise ConfigError(f"{PFL_PYTHON} is {named}, which is no program")
        return {**pythons, "pfl": Python(named)}
    try:
        return {**pythons, "pfl": Python(sys.executable, (str(pfl_packages(console)),))}
    except ServiceError as error:
        console.print(f"[yellow]pfl-research is left out[/]: {error}; or let {PFL_PYTHON} name a python that has it")
        return {system: python for system, python in pythons.items() if system != "pfl"}


def make_job(case: Case, folder: Path) -> Job:
    """Write the job and every institution's standardised records into `folder`."""
    import numpy as np
    import torch

    from sovfed.clients.training.feed import Feed, profile_of
    from sovfed.federation.compose import compose
    from sovfed.federation.tasks.registry import get_task
    from sovfed.federation.tasks.trees import leaves
    from sovfed.simulations.population import make_population

    name = TASKS[case.workload]
    task = get_task(name)
    overrides = (
        f"task={name}", "secagg=none", f"seed={SEED}",
        f"partition={'natural' if case.workload in BIG else 'dirichlet'}",
        f"task.local_epochs={EPOCHS}", f"task.batch_size={BATCH}", f"task.learning_rate={LEARNING_RATE}",
        f"simulation.institutions={case.institutions}", f"simulation.cohort={case.cohort}",
    )  # fmt: skip
    datasets = [institution.load(task) for institution in make_population(compose(overrides).config)]
    scale = task.transform.scale(np.sum([profile_of(task, records, records.train) for records in datasets], axis=0))
    feeds = [Feed(task, records, scale, torch.device("cpu")) for records in datasets]
    tables: dict[str, Any] = {}
    for side in ("train", "test"):
        rows = [getattr(records, side) for records in datasets]
        examples = [feed.take(torch.from_numpy(indices)) for feed, indices in zip(feeds, rows, strict=True)]
        tables[f"{side}_features"] = np.concatenate([leaves(inputs)[0].numpy() for inputs, _ in examples])
        tables[f"{side}_labels"] = np.concatenate([leaves(targets)[0].numpy() for _, targets in examples])
        tables[f"{side}_ends"] = np.cumsum([0, *map(len, rows)])
    np.savez(folder / "records.npz", **tables)
    job = Job(folder, name, overrides, case.institutions, case.cohort, EPOCHS, BATCH, LEARNING_RATE, SEED)
    job.write()
    return job


def measure(system: str, job: Job, rounds: int, console: Console, python: Python = OWN) -> dict[str, float]:
    """One turn of `system`: a round to start and `rounds` more.

    Raises ServiceError with the end of its output if it fails.
    """
    rounds += 1
    environment = {
        **quiet_environment(), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "FLWR_HOME": str(job.folder / "flwr"),
        "PYTHONPATH": os.pathsep.join((_path(), *python.paths)),
    }  # fmt: skip
    module = "sovfed.simulations.benchmarks.simulators"
    command = [python.program, "-P", "-m", module, system, str(job.folder), str(rounds)]
    log = job.folder / f"{system}.log"
    with log.open("wb") as output, _process(command, environment, output) as process:
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ServiceError(f"{system}: {rounds} rounds not within {TIMEOUT_S:g} s") from None
    if code:
        raise ServiceError(f"{system} failed: …{log.read_text(errors='replace')[-2000:]}")
    result = json.loads((job.folder / f"{system}.json").read_text())
    first, last = result["marks"][0], result["marks"][-1]
    updates = (len(result["marks"]) - 1) * job.cohort
    turn = {
        "cpu_ms": 1e3 * (last["cpu"] - first["cpu"]) / updates,
        "wall_ms": 1e3 * (last["wall"] - first["wall"]) / updates,
        "start_cpu_s": first["cpu"],
        "start_wall_s": first["wall"],
        "memory_mb": result["bytes"] / MB,
        "accuracy": result["accuracy"],
        "updates": float(updates),
    }
    console.print(
        f"[green]✓[/] {system}, {job.task}, {job.cohort} a round: {turn['cpu_ms']:.3g} ms CPU an update, "
        f"start-up {turn['start_wall_s']:.1f} s"
    )
    return turn


@contextmanager
def _process(command: list[str], environment: dict[str, str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process, and nothing of its tree left afterwards."""
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    members: dict[int, int] = {}
    try:
        yield process
    finally:
        if process.poll() is None:
            members = process_tree.tree([process.pid])
        process_tree.send(members, SIGKILL)
        process.wait()


def _path() -> str:
    """Where `sovfed` is imported from, for another environment's python."""
    import sovfed

    return str(Path(next(iter(sovfed.__path__))).parent)


def _row(case: Case, system: str, turns: list[dict[str, float]]) -> dict[str, Any]:
    median = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
    spread = [turn["cpu_ms"] for turn in turns]
    return {
        "system": system, "case": f"{case.workload}, {case.cohort}", "workload": case.workload, "cohort": case.cohort,
        "turns": len(turns), **median, "cpu_ms_min": min(spread), "cpu_ms_max": max(spread),
    }  # fmt: skip


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Peer ÷ ours: CPU of a client update, and over Flower-Ray start-up, memory and `workers`' wall.

    Where a workload was measured at several cohorts, the geometric mean over them.
    """
    each: dict[str, list[float]] = {}
    for workload, cohort in dict.fromkeys((row["workload"], row["cohort"]) for row in rows):
        by_system = {row["system"]: row for row in rows if (row["workload"], row["cohort"]) == (workload, cohort)}
        pairs = [
            (f"{engine}_over_{name}", peer, engine, "cpu_ms")
            for peer, name in (("flower_ray", "ray"), ("pfl", "pfl"), ("bare", "bare"))
            for engine in OURS
        ]
        pairs += [
            (f"{key.split('_')[0]}_over_ray", "flower_ray", "inprocess", key) for key in ("start_cpu_s", "memory_mb")
        ]
        pairs.append(("wall_over_ray", "flower_ray", "workers", "wall_ms"))
        for name, peer, engine, key in pairs:
            if peer in by_system and engine in by_system:
                each.setdefault(f"{name}_{workload}", []).append(by_system[peer][key] / by_system[engine][key])
    return {name: statistics.geometric_mean(values) for name, values in each.items()}


COLUMNS: Final = (
    Column("case", "work"),
    Column("system", "system"),
    Column("cpu_ms", "CPU ms", "{:.3f}".format),
    Column("wall_ms", "wall ms", "{:.3f}".format),
    Column("start_cpu_s", "start CPU s", "{:.1f}".format),
    Column("start_wall_s", "start s", "{:.1f}".format),
    Column("memory_mb", "MB", "{:.0f}".format),
    Column("accuracy", "accuracy", "{:.3f}".format),
)
