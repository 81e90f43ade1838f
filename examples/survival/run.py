"""Survival from Parquet by a task.yaml alone: one line of Python simulates it, and none is needed to deploy it.

python examples/survival/run.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from make_hospitals import prepare

import sovfed

TASK = Path(__file__).with_name("task.yaml")
LOCAL = {"data": "parquet", "simulation.institutions": 3, "task.learning_rate": 0.3}
PRIVATE = {
    "data": "parquet", "simulation.institutions": 3, "privacy.population": 840, "privacy.epsilon": 8,
    "privacy.delta": 1e-4, "privacy.colluders": 0, "server.min_cohort": 3, "task.learning_rate": 1.0,
}  # fmt: skip


def run(quick: bool = False) -> dict[str, float]:
    """Concordance on held-out patients: one model on all of them, federated, and with privacy."""
    rounds = 4 if quick else 20
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder) / "hospitals")
        plain = sovfed.simulate(TASK, data, rounds=rounds, settings={**LOCAL, "task.local_epochs": 4})
        private = sovfed.simulate(TASK, data, rounds=rounds, privacy="distributed", settings=PRIVATE)
        pooled = plain.baselines.pooled
    return {
        "pooled": pooled, "federated": plain.metrics["concordance"], "private": private.metrics["concordance"]
    }  # fmt: skip


if __name__ == "__main__":
    for name, value in run("--quick" in sys.argv).items():
        print(f"{name:<10} concordance {value:.3f}")
