"""Steps whose outcome every institution that held the model before comes to by a change of 16 bits a value.

The agency goes on from the same rounded model as they do. What rounding took is added to the next step's outcome before
that is rounded (error feedback, Seide et al. 2014), so models are never further than one rounding from what the steps
alone would have come to from them, and nothing adds up over rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.changes import change_of, changed
from sovfed.federation.errors import ConfigError
from sovfed.federation.secagg.mask import hash_vector

if TYPE_CHECKING:
    from sovfed.federation.algorithms.server_half import ServerOptimizer, Slots
    from sovfed.federation.vectors import Bytes, Vector

OWED: Final = "rounded.owed"


@dataclass(frozen=True)
class Change:
    """From the model with the digest `base` to `model`, whose digest is `becomes`, by `values` (`changes.py`)."""

    base: str
    becomes: str
    values: Bytes
    model: Vector


class Rounded:
    """Steps by `inner`, and then to the nearest model that a change leads to; `change` is the last one."""

    def __init__(self, inner: ServerOptimizer) -> None:
        self._inner, self._owed = inner, np.zeros(0, np.float32)
        self._known: tuple[Vector, str] | None = None  # the last model that was asked for, with its digest
        self.change: Change | None = None

    def step(self, round: int, model: Vector, mean_update: Vector) -> Vector:
        """Raises TrainingError where the next model is not finite."""
        base, wanted = self.digest(model), self._inner.step(round, model, mean_update)
        if self._owed.size:
            wanted += self._owed
        with np.errstate(over="ignore", invalid="ignore"):  # which `change_of` refuses
            values = change_of(wanted - model)
        following = changed(model, values)
        self._owed = np.subtract(wanted, following, out=wanted)
        self.change = Change(base, self.digest(following), values, following)
        return following

    def digest(self, model: Vector) -> str:
        """The digest of `model`, by which requests name it."""
        if self._known is None or self._known[0] is not model:
            self._known = (model, hash_vector(model).hex())
        return self._known[1]

    def slots(self) -> Slots:
        return dict(self._inner.slots()) | ({OWED: self._owed.copy()} if self._owed.size else {})

    def restore(self, slots: Slots) -> None:
        """Raises ConfigError for what this one or the inner one does not keep."""
        owed = np.array(slots.get(OWED, ()), np.float32)
        if owed.ndim != 1 or not np.isfinite(owed).all():
            raise ConfigError("the checkpoint's remainder of a rounded model is no vector of numbers")
        self._inner.restore({name: slot for name, slot in slots.items() if name != OWED})
        self._owed, self.change = owed, None
