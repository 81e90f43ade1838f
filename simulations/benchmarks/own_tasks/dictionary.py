"""A task and its connector as a package outside of ours would bring them: two inputs by name, a dict of outputs.

`install` writes the metadata of such a package; with its folder on the path, every process finds both by entry point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from sovfed.clients.data import Connector, Records
from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import NUMBERS, Schema, number, target
from sovfed.federation.tasks.losses import cross_entropy

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.config import DataConfig

NAME: Final = "bench_dictionary"
FINDINGS, TRACE = 12, 32
TRAIN: Final = 50  # records of an institution
HELD_OUT: Final = 10
BATCH: Final = 10
RATE: Final = 0.003  # AdamW's


class Net(nn.Module):
    """Findings and a trace, each through a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.findings, self.trace, self.head = nn.Linear(FINDINGS, 16), nn.Linear(TRACE, 16), nn.Linear(32, 3)

    def forward(self, x: Tensor, trace: Tensor) -> dict[str, Tensor]:
        features = torch.cat([torch.relu(self.findings(x)), torch.relu(self.trace(trace))], 1)
        return {"logits": self.head(features), "seen": features}


TASK: Final = Task(
    name=NAME,
    title="Three classes from findings and a trace, made up",
    schema=Schema(
        columns=(
            *(number(f"finding_{index}", -5.0, 5.0) for index in range(FINDINGS)),
            number("trace", -5.0, 5.0, shape=(TRACE,)),
            target("stage", "early", "middle", "late"),
        )
    ),
    metrics=ClassMetrics(classes=3),
    headline="auc",
    build=Net,
    loss=cross_entropy,
)


def load(task: Task, config: DataConfig) -> Records:
    """The records of institution `config.site`, made from its number alone."""
    common, own = np.random.default_rng(0), np.random.default_rng([1, int(config.site)])
    count = TRAIN + HELD_OUT
    weights = common.normal(size=(FINDINGS + TRACE, 3))
    values = np.clip(own.normal(size=(count, FINDINGS + TRACE)), -5, 5).astype(np.float32)
    rows, stage = np.arange(count), (values @ weights).argmax(1)
    table = {NUMBERS: values[:, :FINDINGS], "trace": values[:, FINDINGS:], "stage": stage.astype(np.int64)}
    return Records(table, rows, rows[:TRAIN], rows[TRAIN:], several_records=False)


CONNECTOR: Final = Connector(load, cuts=True, task=NAME)


def install(folder: Path) -> Path:
    """Write the metadata of a package with both into `folder`, which is then to be on the path."""
    metadata = folder / f"{NAME}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[sovfed.tasks]\n{NAME} = {__name__}:TASK\n[sovfed.connectors]\n{NAME} = {__name__}:CONNECTOR\n"
    )
    return folder
