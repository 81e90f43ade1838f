"""Made-up 32 × 32 colour images and the CNN of pfl-research's CIFAR-10 benchmark: measures compute-bound training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Schema, number, target
from sovfed.federation.tasks.losses import cross_entropy

if TYPE_CHECKING:
    from torch.nn import Module


def build() -> Module:
    """pfl-research's `simple_cnn` (arXiv:2404.06430, benchmarks/model/pytorch/cnn.py) without its dropout."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


TASK = Task(
    name="synthetic_images",
    title="Made-up images, 32 x 32 pixels in 3 colours",
    schema=Schema(
        columns=(
            number("image", -8.0, 8.0, shape=(3, 32, 32), scaling="bounds"),
            target("class", *map(str, range(10))),
        ),
    ),
    metrics=ClassMetrics(classes=10),
    headline="accuracy",
    simulated_split=True,
    licence="Apache-2.0",
    citation="made from a seed by clients/data/synthetic.py",
    build=build,
    loss=cross_entropy,
)
