"""Metrics of text models, and of what is no model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums
    from sovfed.federation.metrics.counts import Floats, Labels


@dataclass(frozen=True)
class NoMetrics:
    """[records] and no metric: for a task that measures links, not models."""

    size: int = 1
    names: ClassVar[tuple[str, ...]] = ()
    smaller: ClassVar[frozenset[str]] = frozenset()

    def sums(self, outputs: Floats, targets: Any, losses: Floats) -> Sums:
        return np.array([float(len(losses))])

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class TextMetrics:
    """Bits per byte, and the mean loss of a byte in nats, of a model whose outputs are log p of each byte of a window.

    The first `targets` bytes of a window are given, not predicted. The vector is [windows, Σ −log p, bytes].
    """

    size: int = 3
    names: ClassVar[tuple[str, ...]] = ("bits_per_byte", "loss")
    smaller: ClassVar[frozenset[str]] = frozenset(names)

    def sums(self, outputs: Floats, targets: Labels, losses: Floats) -> Sums:
        counted = outputs.shape[1] - targets
        return np.array([len(targets), (losses * counted).sum(dtype=np.float64), counted.sum()], dtype=np.float64)

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        _, nats, count = (float(total) for total in sums)
        return {"bits_per_byte": nats / count / math.log(2.0), "loss": nats / count} if count > 0 else {}


@dataclass(frozen=True)
class TokenMetrics:
    """Bits per byte of the text, whatever the tokenizer, and the mean loss of a token in nats.

    Outputs are log p [n, t] of each token of a window. Targets are `given` [n], the first tokens that are not
    predicted, and `bytes` [n], those of the text that the others stand for. The vector is [windows, Σ −log p, bytes,
    tokens], the last three in thousands: secure aggregation has a place for 2^30.
    """

    size: int = 4
    names: ClassVar[tuple[str, ...]] = ("bits_per_byte", "loss")
    smaller: ClassVar[frozenset[str]] = frozenset(names)

    def sums(self, outputs: Floats, targets: Any, losses: Floats) -> Sums:
        length = outputs.shape[1]
        nats = losses.sum(dtype=np.float64) * length
        count = (length - np.ceil(targets["given"])).sum(dtype=np.float64)
        return np.array([len(losses), nats / 1e3, targets["bytes"].sum(dtype=np.float64) / 1e3, count / 1e3])

    def summarise(self, sums: Sums, unit: float = 1.0) -> dict[str, float]:
        _, nats, text, tokens = (float(total) for total in sums)
        if text <= 0 or tokens <= 0:
            return {}
        return {"bits_per_byte": nats / text / math.log(2.0), "loss": nats / tokens}
