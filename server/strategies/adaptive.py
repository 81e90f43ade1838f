"""FedAvgM, FedAdagrad, FedAdam and FedYogi, a piece of the vector at a time and their moments in place.

The steps are those of Flower's classes of these names (`tests/server/strategies/test_strategies.py`), which make a
new vector in each of these operations; here a step makes one, the next model.

Sources: FedAvgM, Hsu et al. 2019, arXiv:1909.06335; the others Reddi et al. 2021, arXiv:2003.00295, Algorithm 2,
FedAdam with its rate corrected for moments that begin at 0 (Kingma and Ba 2015, arXiv:1412.6980, section 2.1).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from sovfed.federation.algorithms.server_half import ServerOptimizer, Slots
from sovfed.federation.config import StrategyConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import Vector

PIECE: Final = 1 << 16  # numbers; what a step works on lies in a core's cache together


def make_adaptive(config: StrategyConfig) -> ServerOptimizer:
    """The one that `config.name` names. Raises ConfigError."""
    kinds: dict[str, Callable[[StrategyConfig], ServerOptimizer]] = {
        "fedavgm": FedAvgM, "fedadagrad": FedAdagrad, "fedadam": FedAdam, "fedyogi": FedYogi,
    }  # fmt: skip
    if config.name not in kinds:
        raise ConfigError(f"'{config.name}' has no server's half")
    return kinds[config.name](config)


class _Stateful(ABC):
    """A step over pieces, with moments of the model's length that begin at 0."""

    moments: tuple[str, ...]  # names of the slots

    def __init__(self, config: StrategyConfig) -> None:
        self._config, self._slots = config, Slots()

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        """The next model, shape [d]. The moments are changed where they lie."""
        for name in self.moments:
            self._slots.setdefault(name, np.zeros(model.size, np.float32))
        following = np.empty(model.size, np.float32)
        for place in _pieces(model.size):
            self._step_piece(round, model[place], mean_update[place], following[place], *self._moments(place))
        return following

    def _moments(self, place: slice) -> list[Vector]:
        return [self._slots[name][place] for name in self.moments]

    @abstractmethod
    def _step_piece(self, round: int, model: Vector, update: Vector, following: Vector, *moments: Vector) -> None:
        """Fill `following` with the next `model`."""

    def slots(self) -> Slots:
        """Copies: a checkpoint of them is written while the next round is under way."""
        return {name: slot.copy() for name, slot in self._slots.items()}

    def restore(self, slots: Slots) -> None:
        """Raises ConfigError for what this one does not keep."""
        if set(slots) - set(self.moments):
            raise ConfigError(
                f"the checkpoint holds optimizer state {sorted(slots)}, this strategy keeps {sorted(self.moments)}"
            )
        self._slots = {name: np.array(slot, np.float32) for name, slot in slots.items()}


class FedAvgM(_Stateful):
    """b ← μ·b − Δ, x ← x − η·b for the mean update Δ; with Nesterov's look ahead x ← x − η·(μ·b − Δ).

    That is DiLoCo's outer step (Douillard et al. 2023, arXiv:2311.08105), as torch.optim.SGD has it.
    """

    moments = ("momentum",)

    def _step_piece(self, round: int, model: Vector, update: Vector, following: Vector, *moments: Vector) -> None:
        (momentum,) = moments
        momentum *= self._config.server_momentum
        momentum -= update
        rate = self._config.server_learning_rate
        if self._config.server_nesterov:
            np.multiply(momentum, -rate * self._config.server_momentum, out=following)
            following += np.float32(rate) * update
        else:
            np.multiply(momentum, -rate, out=following)
        following += model


class _Adaptive(_Stateful):
    """m ← β₁·m + (1 − β₁)·Δ, v by the algorithm's rule, x ← x + η·m / (√v + τ)."""

    moments = ("m", "v")
    first_decay = 0.0  # β₁

    def _step_piece(self, round: int, model: Vector, update: Vector, following: Vector, *moments: Vector) -> None:
        first, second = moments
        work = update * (1 - self.first_decay)
        first *= self.first_decay
        first += work
        self._move(second, np.square(update, out=work), following)
        np.sqrt(second, out=work)
        work += self._config.tau
        np.multiply(first, self._rate(round), out=following)
        following /= work
        following += model

    def _rate(self, round: int) -> float:
        return self._config.server_learning_rate

    @abstractmethod
    def _move(self, second: Vector, square: Vector, work: Vector) -> None:
        """Move the second moment after an update of which this is the `square`; both others may be written over."""


class FedAdagrad(_Adaptive):
    """v ← v + Δ², and no momentum."""

    def _move(self, second: Vector, square: Vector, work: Vector) -> None:
        second += square


class FedAdam(_Adaptive):
    """v ← β₂·v + (1 − β₂)·Δ²."""

    def __init__(self, config: StrategyConfig) -> None:
        super().__init__(config)
        self.first_decay = config.beta_1

    def _rate(self, round: int) -> float:
        # as in Flower, one round further than Kingma and Ba
        unbiased = math.sqrt(1 - self._config.beta_2 ** (round + 1)) / (1 - self._config.beta_1 ** (round + 1))
        return super()._rate(round) * unbiased

    def _move(self, second: Vector, square: Vector, work: Vector) -> None:
        second *= self._config.beta_2
        square *= 1 - self._config.beta_2
        second += square


class FedYogi(_Adaptive):
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""

    def __init__(self, config: StrategyConfig) -> None:
        super().__init__(config)
        self.first_decay = config.beta_1

    def _move(self, second: Vector, square: Vector, work: Vector) -> None:
        np.sign(np.subtract(second, square, out=work), out=work)
        work *= square
        work *= 1 - self._config.beta_2
        second -= work


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, min(start + PIECE, size)) for start in range(0, size, PIECE))
