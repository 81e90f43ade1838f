"""FedSGD (McMahan et al. 2017, arXiv:1602.05629, section 2): central training on the institutions' mean gradient.

An institution takes one plain step with a learning rate of 1 (or `strategy.gradient_scale`), so its update is the
negative mean gradient of a batch.
The mean of these, weighted by records, is the gradient of the pooled loss (of all records, or in expectation). The
server steps on it with the task's optimizer, learning rate and schedule, and keeps the optimizer's state from round to
round. Nobody sees a gradient but their sum.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from sovfed.federation.errors import ConfigError
from sovfed.federation.optimizers import State, make

if TYPE_CHECKING:
    from torch import Tensor

    from sovfed.federation.algorithms.server_half import Slots
    from sovfed.federation.messages import Vector
    from sovfed.federation.plan import LocalPlan, Schedule
    from sovfed.federation.tasks.layout import Layout, Part

COUNT: Final = "count"  # the slot of the steps taken


class FedSgd:
    """One step of the plan's optimizer on the negative mean update, at the mean rate of the round."""

    def __init__(self, plan: LocalPlan, schedule: Schedule, layout: Layout | None, scale: float = 1.0) -> None:
        """`layout` tells where each parameter stands; without it the vector is one. Raises ConfigError.

        An update is `scale` times the negative gradient.
        """
        if layout is None and plan.optimizer == "muon":
            raise ConfigError("muon steps on matrices, and this task's vector has none")
        self._plan, self._schedule, self._scale = plan, schedule, np.float32(scale)
        self._optimizer = make(plan)
        self._shapes = None if layout is None else [_shape(spec, layout) for spec in layout.parts if spec.trained]
        self._state: State | None = None
        self._restored: Slots = {}

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        flat = torch.from_numpy(np.array(model, dtype=np.float32))
        values = self._split(flat)
        gradients = self._split(torch.from_numpy(np.divide(mean_update, -self._scale, dtype=np.float32)))
        state = self._ready(values)
        self._optimizer.step(values, gradients, state, self._plan.learning_rate * self._schedule.middle(round))
        stepped: Vector = flat.numpy()
        return stepped

    def slots(self) -> Slots:
        if self._state is None:
            return self._restored
        return {**self._state.vectors(), COUNT: np.array([self._state.count], dtype=np.int64)}

    def restore(self, slots: Slots) -> None:
        """Raises ConfigError unless these are slots of this strategy; their sizes are checked with the first step."""
        if slots and (COUNT not in slots or slots[COUNT].shape != (1,)):
            raise ConfigError(f"the checkpoint holds optimizer state {sorted(slots)}, which is not fedsgd's")
        self._state, self._restored = None, dict(slots)

    def _ready(self, values: list[Tensor]) -> State:
        if self._state is None:
            self._state = self._optimizer.init(values)
            if self._restored:
                vectors = {name: value for name, value in self._restored.items() if name != COUNT}
                self._state.load(vectors, int(self._restored[COUNT][0]))
        return self._state

    def _split(self, flat: Tensor) -> list[Tensor]:
        """Views of `flat`, one a parameter."""
        if self._shapes is None:
            return [flat]
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self._shapes]
        pieces = torch.split(flat, sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]


def _shape(spec: Part, layout: Layout) -> tuple[int, ...]:
    """As the optimizer is to take it: a row for each token of a vocabulary makes no matrix, since rows come and go."""
    return (math.prod(spec.shape),) if spec.name in layout.vocabulary else spec.shape
