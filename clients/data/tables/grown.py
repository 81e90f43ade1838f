"""The arrays of a table while its length is not known: they grow in place, so that no second copy is ever made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST: Final = 1024  # records that there is room for at first
STEP: Final = 1.125  # by which the room grows


class Grown:
    """Arrays by name, each with one part a record; `count` records are in use."""

    def __init__(self, stored: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]) -> None:
        self.count = 0
        self.arrays: dict[str, npt.NDArray[Any]] = {
            name: np.empty((0, *shape), dtype) for name, (dtype, shape) in stored.items()
        }
        self._room = 0

    def grow(self, more: int) -> slice:
        """Make room for `more` records and give their place. What points into the arrays is void afterwards."""
        start, self.count = self.count, self.count + more
        if self.count > self._room:
            self._resize(max(self.count, FIRST, int(self._room * STEP)))
        return slice(start, self.count)

    def done(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays, as long as there are records."""
        self._resize(self.count)
        return self.arrays

    def _resize(self, room: int) -> None:
        self._room = room
        for array in self.arrays.values():
            array.resize((room, *array.shape[1:]), refcheck=False)
