"""`python -m … SYSTEM FOLDER WORKLOAD ROUNDS`: run one simulator and write its marks to FOLDER."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from sovfed.simulations.benchmarks.simulators.workload import Clock, Job

MODULES = {
    "inprocess": "ours", "workers": "ours", "vectorised": "ours", "bare": "bare", "flower_ray": "flower_ray",
    "pfl": "pfl_research", "opacus": "opacus_client", "flower_ray_opacus": "flower_ray",
}  # fmt: skip

if __name__ == "__main__":
    system, folder, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    clock = Clock()
    module = import_module(f"sovfed.simulations.benchmarks.simulators.{MODULES[system]}")
    module.run(system, Job.read(folder), rounds, clock)
    clock.write(folder / f"{system}.json")
