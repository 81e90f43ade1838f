"""What an outside package imports to bring its own task, connector, metric or optimizer, and all that it may rely on.

`API` is raised when a name here changes its meaning or goes; new names do not raise it.

    from sovfed.task import Schema, Task, losses, metrics, number, target

    TASK = Task(
        name="birth", title="Preterm birth", build=Net, loss=losses.cross_entropy, metrics=metrics.ClassMetrics(2),
        headline="auc", schema=Schema((number("age", 10, 60), target("preterm", "no", "yes"))),
    )

and in the package's pyproject.toml

    [project.entry-points."sovfed.tasks"]
    birth = "birth:TASK"
"""

from __future__ import annotations

from typing import Final

from sovfed.clients.data import Connector, Dataset, Records
from sovfed.clients.data.arrays import records
from sovfed.federation import metrics
from sovfed.federation.metrics import Metric
from sovfed.federation.optimizers import LocalOptimizer, State
from sovfed.federation.plan import LocalPlan
from sovfed.federation.tasks import Task, losses
from sovfed.federation.tasks.columns import Column, Schema, Table, number, target
from sovfed.federation.tasks.registry import add_archive
from sovfed.federation.tasks.simple import classifier, language_model, multilabel, regressor
from sovfed.federation.tasks.transform import Transform
from sovfed.federation.tasks.trees import Tree as Batch

API: Final = 1

__all__ = [
    "API", "Batch", "Column", "Connector", "Dataset", "LocalOptimizer", "LocalPlan", "Metric", "Records", "Schema",
    "State", "Table", "Task", "Transform",
    "add_archive", "classifier", "language_model", "losses", "metrics", "multilabel", "number", "records", "regressor",
    "target",
]  # fmt: skip
