"""Our simulation, by either engine; it makes its own records, so its start-up has all of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

from sovfed.federation.compose import compose
from sovfed.simulations.benchmarks.simulators.workload import Clock, Job
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import make_population

ENGINES: Final = {  # by the benchmark's name of the system
    "inprocess": ("simulation.engine=inprocess", "simulation.workers=0"),
    "workers": ("simulation.engine=inprocess", f"simulation.workers={os.cpu_count()}"),
    "vectorised": ("simulation.engine=vectorised",),
}


def run(system: str, job: Job, rounds: int, clock: Clock) -> None:
    """Coordinator, checkpoints, round lines and metrics included; what comes after the last round is not counted."""
    config = compose([*job.overrides, *ENGINES[system], f"rounds={rounds}"]).config

    def on_round(line: dict[str, Any]) -> None:
        clock.mark()
        clock.accuracy = line["metrics"].get("accuracy", 0.0)  # a private round tells none
        if line["round"] == rounds:
            clock.weigh()

    with tempfile.TemporaryDirectory(dir=job.folder) as folder:
        simulate_population(config, make_population(config), Path(folder), on_round=on_round)
