"""What a server optimizer may step: parameters. Running statistics are averaged.

The vector ends with buffers that are no parameters, such as BatchNorm's running variances. Their mean over institutions
is the best that is known of them; a step along it with momentum or a rate of its own overshoots, and a variance below
zero makes every output NaN.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sovfed.federation.algorithms.server_half import Combining, Controlling, ServerOptimizer, Slots
    from sovfed.federation.messages import Vector
    from sovfed.server.rounds.aggregation import Total


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


class Corrected:
    """Lets a strategy from outside step the whole vector, as its layout has it, and puts the mean back for the rest."""

    def __init__(self, inner: ServerOptimizer, trained: int) -> None:
        self._inner, self._trained = inner, trained

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        cut = self._trained
        stepped = np.array(self._inner.step(round, model, mean_update), dtype=np.float32)
        stepped[cut:] = model[cut:] + mean_update[cut:]
        return stepped

    def slots(self) -> Slots:
        return self._inner.slots()

    def restore(self, slots: Slots) -> None:
        self._inner.restore(slots)


class CorrectedCombining(Corrected):
    """The same of a strategy that combines the round's replies itself: the rest moves by what it makes of them."""

    def __init__(self, inner: ServerOptimizer, combining: Combining, trained: int) -> None:
        super().__init__(inner, trained)
        self._combining = combining

    def combine(self, round: int, total: Total, present: int) -> Vector:
        return self._combining.combine(round, total, present)


class CorrectedControlling(CorrectedCombining):
    """The same of one whose institutions correct their steps by what it sends beside the model."""

    def __init__(self, inner: ServerOptimizer, combining: Combining, trained: int, controlling: Controlling) -> None:
        super().__init__(inner, combining, trained)
        self._controlling = controlling

    def control(self, model: Vector) -> Vector:
        return self._controlling.control(model)
