"""A running average of the models of all rounds, which a run ends with in the place of the last one.

Polyak and Juditsky 1992; exponential, with the correction of Kingma and Ba 2015 (arXiv:1412.6980, section 3) for an
average that begins at 0. Of a private run it is post-processing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from sovfed.federation.algorithms.server_half import ServerOptimizer, Slots
    from sovfed.federation.messages import Vector

SUM, COUNT = "ema.sum", "ema.count"
PIECE: Final = 1 << 16  # values that are moved at once


class Averaged:
    """Steps by `inner`, and keeps a ← decay · a + (1 − decay) · model beside it."""

    def __init__(self, inner: ServerOptimizer, decay: float) -> None:
        self.inner, self._decay = inner, decay
        self._sum: Vector | None = None
        self._count = 0

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        following = self.inner.step(round, model, mean_update)
        if self._sum is None:
            self._sum = np.zeros(following.size, np.float32)
        for start in range(0, following.size, PIECE):
            piece = self._sum[start : start + PIECE]
            piece *= self._decay
            piece += np.float32(1 - self._decay) * following[start : start + PIECE]
        self._count += 1
        return following

    def average(self, last: Vector) -> Vector:
        """The average, shape [d]; the `last` model where there was no step."""
        if self._sum is None:
            return last
        average: Vector = self._sum / np.float32(1 - self._decay**self._count)
        return average

    def slots(self) -> Slots:
        slots = dict(self.inner.slots())
        if self._sum is not None:
            slots[SUM], slots[COUNT] = self._sum.copy(), np.array([self._count], np.int64)
        return slots

    def restore(self, slots: Slots) -> None:
        """Raises ConfigError for what this one or the inner one does not keep."""
        if (SUM in slots) != (COUNT in slots):
            raise ConfigError("the checkpoint holds half of a running average")
        self.inner.restore({name: slot for name, slot in slots.items() if name not in (SUM, COUNT)})
        if SUM in slots:
            self._sum, self._count = np.array(slots[SUM], np.float32), int(slots[COUNT][0])
