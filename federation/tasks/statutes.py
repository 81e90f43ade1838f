"""Which byte comes next in a law? A byte-level transformer, trained from scratch on what ministries have issued.

Bytes of UTF-8 rather than words: no vocabulary that would have to be made from everybody's texts first, and one model
for every script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.federation.metrics import TextMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Column, Schema, number

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

PREDICTED: Final = 128  # bytes of a window that are predicted: all but the first


def build() -> Module:
    from sovfed.federation.tasks.byte_gpt import ByteGPT

    return ByteGPT()


def mean_loss(scores: Tensor, given: Tensor) -> Tensor:
    """−log p of a window's bytes, their mean: scores [n, 128] = log p, the first `given` [n] not counted → [n]."""
    import torch

    counted = torch.arange(scores.shape[1], device=scores.device) >= given[:, None]
    return -(scores * counted).sum(1) / counted.sum(1)


TASK = Task(
    name="statutes",
    title="National law by ministry: the next byte (Japanese or German)",
    schema=Schema(
        columns=(
            Column("window", "tokens", low=0.0, high=255.0, shape=(PREDICTED + 1,)),
            number("given", 0.0, PREDICTED - 1.0, role="target", scaling="none"),  # bytes that another window predicts
        ),
    ),
    metrics=TextMetrics(),
    headline="bits_per_byte",
    simulated_split=False,
    licence="Japanese: CC BY 4.0; German: official works, UrhG section 5",
    citation="e-Gov (https://laws.e-gov.go.jp), processed; bundestag/gesetze, March 2022",
    build=build,
    loss=mean_loss,
    evaluation_batch=256,
)
