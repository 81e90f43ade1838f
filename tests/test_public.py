"""What an outside package may rely on: `sovfed.task`, whose names neither go nor change unless `API` is raised."""

from __future__ import annotations

import sovfed
import sovfed.task

API_1 = [
    "API", "Batch", "Column", "Connector", "Dataset", "LocalOptimizer", "LocalPlan", "Metric", "Records", "Schema",
    "State", "Table", "Task", "Transform", "add_archive", "classifier", "language_model", "losses", "metrics",
    "multilabel", "number", "records", "regressor", "target",
]  # fmt: skip


def test_the_public_names_are_those_of_the_stored_listing() -> None:
    assert sovfed.task.API == 1
    assert sorted(sovfed.task.__all__, key=str.lower) == sorted(API_1, key=str.lower)
    assert all(hasattr(sovfed.task, name) for name in sovfed.task.__all__)


def test_the_package_itself_offers_the_simulation() -> None:
    from sovfed.simulations import api

    assert set(sovfed.__all__) == {"Result", "__version__", "simulate"}
    assert sovfed.simulate is api.simulate
