"""Tasks of every kind of output, small enough to be written down here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from sovfed.federation.metrics import NoMetrics
from sovfed.federation.models.facts import Privacy, RunFacts
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Column, Schema, number, target
from sovfed.federation.tasks.registry import add

RUN = RunFacts(
    name="study-1", rounds=3, strategy="fedavg", date="2026-11-29", institutions=("north", "south"),
    metrics={"auc": 0.75, "loss": 0.5}, privacy=Privacy("distributed", 1.25, 1e-5),
)  # fmt: skip
MIXED = Schema(
    columns=(
        number("age", 0, 100, unit="years"),
        number("dose", -2, 2, missing="mean", indicator=True),
        number("flat", 0, 10, scaling="none", missing="constant", fill=4.0),
        Column("smoker", "boolean", true=("oui",), false=("non",)),
        Column("seen", "date", low=0.0, high=40_000.0),
        Column("ward", "category", categories=("A", "B", "C"), missing="category"),
        Column("sex", "category", categories=("f", "m")),
        target("outcome", "well", "ill"),
    ),
    one_row_a_person=True,
)


@dataclass(frozen=True)
class Edges(NoMetrics):
    edges: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0)


def squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.reshape(len(outputs), -1).square().mean(1)


def linear(width: int, outputs: int) -> nn.Module:
    return nn.Linear(width, outputs)


class WithBuffers(nn.Module):
    """Frozen, tied, uncounted and masked: what a state dict may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(12, 4)
        self.frozen.requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 1, dtype=torch.float64)
        self.same = self.head
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.norm(self.frozen(x)).double()).float()
        return outputs


def task(name: str, schema: Schema, outputs: int, metrics: NoMetrics | None = None) -> Task:
    def build() -> nn.Module:
        return linear(schema_width(schema), outputs)

    return add(
        Task(
            name=name, title=f"Of <{name}>", schema=schema, metrics=metrics or NoMetrics(), headline="auc",
            build=build, loss=squares,
        )
    )  # fmt: skip


def schema_width(schema: Schema) -> int:
    from sovfed.federation.tasks.transform import Transform

    return Transform(schema).width


def with_targets(*targets: Column) -> Schema:
    return Schema((*(column for column in MIXED.columns if column.role == "input"), *targets), one_row_a_person=True)


BINARY = task("t_binary", MIXED, 1)
_SIZE = number("size", 0, 50, role="target", unit="cm")
_LABELS = (Column("cough", "boolean", role="target"), Column("fever", "boolean", role="target"))
_TIME = number("time", 0, 10, role="target", scaling="none")
TASKS = {
    "binary": BINARY,
    "several": task("t_several", with_targets(target("grade", "1", "2", "3")), 3),
    "number": task("t_number", with_targets(_SIZE), 1),
    "labels": task("t_labels", with_targets(*_LABELS), 2),
    "survival": task("t_survival", with_targets(_TIME, Column("event", "boolean", role="target")), 3, Edges()),
    "buffers": add(replace(BINARY, name="t_buffers", build=WithBuffers)),
}


def model_of(task: Task, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A vector and a scale that are not those that a model begins with."""
    generator = np.random.default_rng(seed)
    size = task.transform.size
    scale = np.concatenate([generator.uniform(-0.5, 0.5, size), generator.uniform(0.2, 1.0, size)])
    return generator.uniform(0.1, 1.0, task.parameters).astype(np.float32), scale
