"""Which digit is it? Softmax regression on 8 × 8 pixels: few parameters, so privacy's noise costs it little.

It begins close to zero: its loss is convex, and a start far from its least would only cost steps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sovfed.federation.tasks.digits import TASK as DIGITS

if TYPE_CHECKING:
    from torch.nn import Module


def build() -> Module:
    from torch import nn

    model = nn.Linear(64, 10)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1e-3)
    return model


TASK = replace(
    DIGITS,
    name="digits_linear",
    title="Handwritten digits, 8 x 8 pixels, by softmax regression",
    build=build,
)
