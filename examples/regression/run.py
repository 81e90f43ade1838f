"""Regression: how far diabetes has gone after a year, from ten measurements of 442 persons (Efron et al. 2004).

python examples/regression/run.py [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression

sys.path.insert(0, str(Path(__file__).parents[1]))
from arrays.connector import write
from regression.task import TASK
from study import Study, divided, main, united


def prepare(folder: Path) -> Path:
    """A third of the persons for each institution; 142 of all are held out."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:300], order[300:]
    return write(folder, divided((x[train], y[train]), (x[test], y[test])))


def pooled(folder: Path) -> float:
    """R² of least squares on all training records."""
    x, y, held_out, expected = united(folder)
    return float(LinearRegression().fit(x, y).score(held_out, expected))


STUDY = Study(
    "regression", TASK, "r2", "arrays", prepare, pooled, "scikit-learn's LinearRegression", persons=300, rounds=40,
    plain={"task.local_epochs": 10, "task.learning_rate": 0.1, "task.batch_size": 100},
    private={"task.learning_rate": 0.3},
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
