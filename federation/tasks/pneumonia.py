"""Does a chest X-ray show pneumonia? A small convolutional network on 28 × 28 pixels (PneumoniaMNIST).

One hospital's images: every split into institutions is simulated. Not for clinical use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Column, Schema, target
from sovfed.federation.tasks.losses import binary_cross_entropy

if TYPE_CHECKING:
    from torch.nn import Module


def build() -> Module:
    """Three convolutions with GroupNorm, which knows no batch: an institution's, or a person's, is its own."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, stride=2),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.GroupNorm(8, 64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 1),
    )


TASK = Task(
    name="pneumonia",
    title="Chest X-ray: normal or pneumonia (PneumoniaMNIST, 28 x 28)",
    schema=Schema(
        columns=(
            Column("image", "image", shape=(1, 28, 28), scaling="bounds"),  # a pixel is a pixel: its range is known
            target("pneumonia", "normal", "pneumonia"),
        ),
    ),
    metrics=BinaryMetrics(),
    headline="auc",
    simulated_split=True,
    licence="CC BY 4.0",
    citation="Yang et al. 2023: MedMNIST v2, doi 10.1038/s41597-022-01721-8; Kermany et al. 2018",
    build=build,
    loss=binary_cross_entropy,
)
