"""Which digit is it? A convolutional network with BatchNorm, whose statistics differ from scanner to scanner.

BatchNorm mixes the records of a batch, so for a private run `task.normalisation=group` makes it GroupNorm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sovfed.federation.tasks.digits import TASK as DIGITS

if TYPE_CHECKING:
    from torch.nn import Module


def build() -> Module:
    from torch import nn

    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


TASK = replace(
    DIGITS,
    name="digits_cnn",
    title="Handwritten digits, 8 x 8 pixels, by a CNN with BatchNorm",
    build=build,
)
