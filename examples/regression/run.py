"""Regression: how far diabetes has gone after a year, from ten measurements of 442 persons (Efron et al. 2004).

python examples/regression/run.py [--quick]
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from torch import nn

import sovfed
from sovfed.task import number, regressor

BOUNDS = {
    "age": (18, 80), "sex": (1, 2), "bmi": (15, 45), "bp": (60, 140), "tc": (90, 310), "ldl": (40, 250),
    "hdl": (20, 100), "tch": (1.5, 10), "ltg": (3, 6.5), "glu": (50, 130),
}  # fmt: skip
COLUMNS = [number(name, low, high) for name, (low, high) in BOUNDS.items()]
TASK = regressor("diabetes", lambda: nn.Linear(10, 1), COLUMNS, low=0, high=400, one_row_a_person=True)
PRIVATE = {
    "privacy.population": 300, "privacy.epsilon": 8, "privacy.delta": 1e-3, "privacy.colluders": 0,
    "privacy.sampling_rate": 0.5, "server.min_cohort": 3, "task.learning_rate": 0.3,
}  # fmt: skip


def run(quick: bool = False) -> dict[str, float]:
    """R² on held-out persons: scikit-learn on all records, federated, and with privacy."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:300], order[300:]
    sites = [
        ((x[train[site::3]], y[train[site::3]]), (x[test[site::3]], y[test[site::3]])) for site in range(3)
    ]  # each has a third
    pooled = float(LinearRegression().fit(x[train], y[train]).score(x[test], y[test]))
    plain = sovfed.simulate(
        TASK, sites, rounds=5 if quick else 30, settings={"task.local_epochs": 10, "task.learning_rate": 0.02}
    )
    private = sovfed.simulate(TASK, sites, rounds=5 if quick else 30, privacy="distributed", settings=PRIVATE)
    return {"pooled": pooled, "federated": plain.metrics["r2"], "private": private.metrics["r2"]}


if __name__ == "__main__":
    for name, value in run("--quick" in sys.argv).items():
        print(f"{name:<10} R2 {value:.3f}")
