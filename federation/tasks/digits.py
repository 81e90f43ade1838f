"""Which digit is it? A small perceptron on 8 × 8 pixels (UCI optical recognition, 1797 images).

No real institution stands behind a part of it: the label-skewed split is simulated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Schema, number, target
from sovfed.federation.tasks.losses import cross_entropy

if TYPE_CHECKING:
    from torch.nn import Module


def build() -> Module:
    from torch import nn

    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


TASK = Task(
    name="digits",
    title="Handwritten digits, 8 x 8 pixels",
    schema=Schema(
        columns=(number("pixel", 0.0, 16.0, shape=(64,)), target("digit", *map(str, range(10)))),
    ),
    metrics=ClassMetrics(classes=10),
    headline="auc",
    simulated_split=True,
    licence="CC BY 4.0",
    citation="Alpaydin, Kaynak 1998: Optical Recognition of Handwritten Digits, UCI, doi 10.24432/C50P49",
    build=build,
    loss=cross_entropy,
)
