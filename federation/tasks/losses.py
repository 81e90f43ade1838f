"""Losses of single records; torch is imported by the call, so that naming a task stays instant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) of one logit a record: logits [n, 1], labels [n] → [n]."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) of a softmax: logits [n, classes], labels [n] → [n]."""
    from torch.nn import functional

    return functional.cross_entropy(logits, labels, reduction="none")
