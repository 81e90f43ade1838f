"""What a server optimizer may step: parameters. Running statistics are averaged.

The vector ends with buffers that are no parameters, such as BatchNorm's running variances. Their mean over institutions
is the best that is known of them; a step along it with momentum or a rate of its own overshoots, and a variance below
zero makes every output NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sovfed.federation.messages import Vector
    from sovfed.server.strategies import ServerOptimizer, Slots


class Stepping:
    """Steps the first `trained` places of the vector by `inner`, and adds the mean update to the rest.

    The slots are `inner`'s, so of length `trained`.
    """

    def __init__(self, inner: ServerOptimizer, trained: int) -> None:
        self._inner, self._trained = inner, trained

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        cut = self._trained
        stepped = self._inner.step(round, model[:cut], mean_update[:cut])
        return np.concatenate([stepped, np.add(model[cut:], mean_update[cut:], dtype=np.float32)])

    def slots(self) -> Slots:
        return self._inner.slots()

    def restore(self, slots: Slots) -> None:
        self._inner.restore(slots)
