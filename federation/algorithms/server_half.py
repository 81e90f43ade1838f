"""What every server optimizer is, and the simplest one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import ConfigError, ProtocolError
from sovfed.federation.vectors import Vector

Slots = dict[str, npt.NDArray[Any]]


class RoundTotal(Protocol):
    """What a server's half may read of what a round's replies add up to (`Total` of `server/rounds/aggregation.py`)."""

    @property
    def participants(self) -> Sequence[int]: ...

    @property
    def count(self) -> int:
        """Training records of all that took part."""

    @property
    def steps(self) -> float:
        """Σ countᵢ·stepsᵢ."""

    @property
    def mean(self) -> Vector | None:
        """Σ countᵢ·updateᵢ / Σ countᵢ, shape [d], or [2d] if a control variate came behind the update."""


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

    def combine(self, round: int, total: Any, present: int) -> Vector:
        """The update to step with, shape [d]; `present` institutions could have taken part in the `RoundTotal`."""
        ...


@runtime_checkable
class Controlling(Protocol):
    """What an optimizer does whose institutions correct their steps by a control variate (`Algorithm.variate`)."""

    def control(self, model: Vector) -> Vector:
        """What goes out beside `model`, of the same shape."""
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


def stepped_by(optimizer: ServerOptimizer, round: int, model: Vector, mean_update: Vector) -> Vector:
    """The next model of `optimizer`, which may take the place of `mean_update`: nobody else has use for that now."""
    own = mean_update.flags.writeable and mean_update.dtype == np.float32
    if own and type(optimizer).step is Averaging.step:
        return np.add(model, mean_update, out=mean_update)
    return optimizer.step(round, model, mean_update)


def mean_of(total: RoundTotal) -> Vector:
    """The mean of what the institutions sent. Raises ProtocolError if nobody sent anything."""
    if total.mean is None or not total.count:
        raise ProtocolError("a round without a mean update")
    return total.mean
