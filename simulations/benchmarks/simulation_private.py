"""The part of `sovfed bench simulation` with example-level DP: Poisson-sampled persons, clipped and noised, in all.

An institution takes two local steps at a sampling rate of 1/2, clip 1, noise multiplier 1, and evaluates nothing, for a
private run tells no metric. Ours draw from a CSPRNG and add discrete noise; Opacus, as in its quick-start, uses torch's
generator. `inprocess` has secure aggregation on, as a private run must, which is most of its time at 100 institutions;
all of them take part in each round, so that it agrees on keys once. `--quick` leaves it out.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.simulations.benchmarks import simulation

if TYPE_CHECKING:
    from rich.console import Console

    from sovfed.simulations.benchmarks.simulators.workload import Job

SYSTEMS: Final = ("flower_ray_opacus", "opacus", "inprocess", "vectorised")
QUICK: Final = ("mlp",)
FULL: Final = ("logreg", "mlp")
COHORT: Final = 100  # all institutions
TURNS: Final = 2
ROUNDS: Final = {"flower_ray_opacus": 4, "opacus": 6, "inprocess": 2, "vectorised": 40}  # a turn, the first apart


def measured(quick: bool, console: Console) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows and ratios, as `simulation.run` takes them."""
    rows = measure_private(quick, console)
    return rows, ratios(rows)


def measure_private(quick: bool, console: Console) -> list[dict[str, Any]]:
    """Rows as those of `simulation.run`, of workloads `…_dp`."""
    rows, systems = [], [system for system in SYSTEMS if not quick or system != "inprocess"]
    for workload in QUICK if quick else FULL:
        case = simulation.Case(workload, COHORT)
        with tempfile.TemporaryDirectory(prefix="sovfed-bench-") as folder:
            job = make_private(simulation.make_job(case, Path(folder)))
            turns_by_system: dict[str, list[dict[str, float]]] = {system: [] for system in systems}
            for _ in range(1 if quick else TURNS):
                for system in systems:
                    turns_by_system[system].append(simulation.measure(system, job, ROUNDS[system], console))
        named = replace(case, workload=f"{workload}_dp")
        rows += [simulation._row(named, system, each) for system, each in turns_by_system.items()]
    return rows


def make_private(job: Job) -> Job:
    """The same job under example-level DP."""
    from sovfed.simulations.benchmarks.simulators.opacus_client import OVERRIDES

    overrides = [override for override in job.overrides if not override.startswith("secagg=")]
    private_job = replace(job, overrides=(*overrides, *OVERRIDES, f"server.min_cohort={job.cohort}"))
    private_job.write()
    return private_job


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """CPU per client update, peer ÷ ours."""
    quotients: dict[str, float] = {}
    for workload in dict.fromkeys(row["workload"] for row in rows):
        cpu = {row["system"]: row["cpu_ms"] for row in rows if row["workload"] == workload}
        for peer, name in (("flower_ray_opacus", "ray"), ("opacus", "opacus")):
            quotients |= {
                f"{engine}_over_{name}_{workload}": cpu[peer] / cpu[engine]
                for engine in simulation.OURS
                if engine in cpu
            }
    return quotients
