"""`python -m … ENGINE FOLDER INSTITUTIONS ROUNDS`: simulated rounds of the dictionary task.

ENGINE is one of ours, or `ray`: Flower's own simulation (`flower_ray.py`).
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from sovfed.simulations.benchmarks.own_tasks.dictionary import BATCH, NAME, RATE
from sovfed.simulations.benchmarks.process_tree import cpu_seconds


def simulate(engine: str, folder: Path, institutions: int, rounds: int) -> dict[str, Any]:
    """Median wall and mean CPU (of the whole process tree) of a round in ms, the first apart, and the last accuracy.

    Coordinator, checkpoints, the task's own metrics and round lines are in it, which Flower's simulation does without.
    """
    if engine == "ray":
        from sovfed.simulations.benchmarks.own_tasks import flower_ray

        return flower_ray.simulate(folder, institutions, rounds)
    from sovfed.federation.compose import compose
    from sovfed.simulations.federation import simulate_population
    from sovfed.simulations.population import make_population

    config = compose(
        [
            "task=own", f"task.name={NAME}", f"data.source={NAME}", "task.optimizer=adamw",
            f"task.learning_rate={RATE}", f"task.batch_size={BATCH}", "secagg=none", "client.device=cpu",
            f"simulation.institutions={institutions}", f"simulation.engine={engine}", "simulation.workers=0",
            f"rounds={rounds + 1}",
        ]
    ).config  # fmt: skip
    marks: list[tuple[float, float]] = []  # when a round ended, and when the next one was let go on
    cpu: list[float] = []
    accuracy = 0.0

    def on_round(line: dict[str, Any]) -> None:
        nonlocal accuracy
        ended = time.perf_counter()
        if len(marks) in (0, rounds):  # reading the process table takes as long as a fast engine's round
            cpu.append(cpu_seconds([os.getpid()]))
        accuracy = line["metrics"]["accuracy"]
        marks.append((ended, time.perf_counter()))

    simulate_population(config, make_population(config), folder / engine, on_round=on_round)
    walls = [ended - started for (_, started), (ended, _) in itertools.pairwise(marks)]
    used = (cpu[-1] - cpu[0]) / len(walls)
    return {"wall_ms": 1e3 * statistics.median(walls), "cpu_ms": 1e3 * used, "accuracy": accuracy}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(simulate(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
