"""`sovfed bench population`: does a round of a given cohort cost more where the population is larger?

Every population is simulated by each engine in a process of its own: CPU and wall of a round (medians over the rounds
after the second), and the process's largest memory. `--device` and overrides make it the measurement of a GPU too:

    sovfed bench population --device cuda task=pneumonia data.path=FOLDER
"""

from __future__ import annotations

import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ServiceError
from sovfed.federation.host.quiet import python_command, quiet_environment
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish

if TYPE_CHECKING:
    from rich.console import Console

ENGINES: Final = ("inprocess", "vectorised")
POPULATIONS: Final = (1_000, 10_000, 100_000)
COHORT: Final = 100
QUICK: Final = 12  # rounds; the first two are not counted
FULL: Final = 52
TIMEOUT_S: Final = 900.0
COLUMNS: Final = (
    Column("engine", "engine"),
    Column("population", "institutions", "{:,}".format),
    Column("cpu_ms", "CPU ms a round", "{:.1f}".format),
    Column("wall_ms", "wall ms a round", "{:.1f}".format),
    Column("memory_mb", "MB", "{:.0f}".format),
    Column("engine_device", "device"),
)


def run(
    quick: bool, device: str, overrides: Sequence[str], *, files: Files, console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Measure, print, write the files that are asked for; what the JSON file holds."""
    files.check()
    rows = [
        measure(engine, population, QUICK if quick else FULL, device, overrides, console)
        for population in POPULATIONS
        for engine in ENGINES
    ]
    report = Report(
        title=f"A round of {COHORT} institutions",
        columns=COLUMNS,
        rows=rows,
        ratios=ratios(rows),
        conditions=conditions(quick=quick, device=device, overrides=" ".join(overrides)),
        bars=Bars("cpu_ms", "cpu_ms", "cpu_ms", "population", "engine", "CPU of a round, ms"),
    )
    return publish(report, console, files)


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Each engine's largest population over its smallest, of CPU a round and of memory."""
    quotients: dict[str, float] = {}
    for engine in ENGINES:
        ordered = sorted((row for row in rows if row["engine"] == engine), key=lambda row: int(row["population"]))
        quotients |= {f"{key}_{engine}": ordered[-1][key] / ordered[0][key] for key in ("cpu_ms", "memory_mb")}
    return quotients


def measure(
    engine: str, population: int, rounds: int, device: str, overrides: Sequence[str], console: Console
) -> dict[str, Any]:
    """One population by one engine. Raises ServiceError with the end of its output if it fails."""
    settings = [
        "task=digits", "secagg=none", "partition=iid", f"simulation.institutions={population}",
        f"simulation.cohort={COHORT}", "task.batch_size=10", f"simulation.engine={engine}", f"rounds={rounds}",
        f"client.device={device}", *overrides,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sovfed-bench-") as folder:
        command = python_command("sovfed.simulations.benchmarks.population", folder, *settings)
        completed = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
            env={**quiet_environment(), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if completed.returncode:
            raise ServiceError(f"{engine}, {population} institutions: …{completed.stderr[-2000:]}")
        result: dict[str, Any] = json.loads((Path(folder) / "result.json").read_text())
    console.print(f"[green]✓[/] {engine}, {population:,} institutions: {result['cpu_ms']:.1f} ms CPU a round")
    return {"engine": engine, "population": population, **result}


def simulate(folder: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Median CPU and wall of a round in ms, the process's largest memory in MB, and the device."""
    from sovfed.clients.training.device import choose_device
    from sovfed.federation.compose import compose
    from sovfed.simulations.federation import simulate_population
    from sovfed.simulations.population import make_population

    config, marks = compose(settings).config, list[tuple[float, float]]()
    simulate_population(
        config, make_population(config), folder / "run",
        on_round=lambda line: marks.append((time.process_time(), time.perf_counter())),
    )  # fmt: skip
    cpu, wall = (
        statistics.median(after - before for before, after in itertools.pairwise(each[1:]))
        for each in zip(*marks, strict=True)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    device = choose_device(config.client.device).type
    return {"cpu_ms": 1e3 * cpu, "wall_ms": 1e3 * wall, "memory_mb": peak / 1e6, "engine_device": device}


if __name__ == "__main__":
    working_folder = Path(sys.argv[1])
    (working_folder / "result.json").write_text(json.dumps(simulate(working_folder, sys.argv[2:])))
