"""What every server optimizer is, and the simplest one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import Vector

if TYPE_CHECKING:
    from sovfed.server.rounds.aggregation import Total

Slots = dict[str, npt.NDArray[Any]]


class ServerOptimizer(Protocol):
    """Turns the mean update of a round into the next model; its slots go into the checkpoint."""

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        """The next model, shape [d], in memory of its own; `mean_update` = Σ nᵢ·updateᵢ / Σ nᵢ, shape [d]."""
        ...

    def slots(self) -> Slots:
        """Everything that must survive a restart, by name."""
        ...

    def restore(self, slots: Slots) -> None: ...


@runtime_checkable
class Combining(Protocol):
    """What an optimizer does for which the mean update is not what the institutions sent."""

    def combine(self, round: int, total: Total, present: int) -> Vector:
        """The update to step with, shape [d]; `present` institutions could have taken part in `total`."""
        ...


class Averaging:
    """FedAvg's server half: model + mean update, in float32."""

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        return np.add(model, mean_update, dtype=np.float32)

    def slots(self) -> Slots:
        return {}

    def restore(self, slots: Slots) -> None:
        if slots:
            raise ConfigError(f"the checkpoint holds optimizer state {sorted(slots)}, but this strategy keeps none")
