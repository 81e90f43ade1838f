"""The arrays of a table while its length is not known: they grow in place, so that no second copy is ever made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping

MORE: Final = 1.03125  # times what is expected, or is there, there is room for: what is never filled takes no memory
FIRST: Final = 1 << 14  # records that there is room for at least
MOST: Final = 1 << 32  # bytes that are asked for on a mere expectation


class Grown:
    """Arrays by name, each with one part a record; `count` records are in use."""

    def __init__(self, stored: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], expected: int = 0) -> None:
        self.count = 0
        each = sum(dtype.itemsize * math.prod(shape) for dtype, shape in stored.values())
        self._room = min(int(expected * MORE), MOST // max(1, each))
        self.arrays: dict[str, npt.NDArray[Any]] = {
            name: np.empty((self._room, *shape), dtype) for name, (dtype, shape) in stored.items()
        }

    def grow(self, more: int) -> slice:
        """Make room for `more` records and give their place. What points into the arrays is void afterwards."""
        start, self.count = self.count, self.count + more
        if self.count > self._room:
            self._resize(max(self.count, FIRST, int(self._room * MORE)))
        return slice(start, self.count)

    def done(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays, as long as there are records."""
        self._resize(self.count)
        return self.arrays

    def _resize(self, room: int) -> None:
        self._room = room
        for array in self.arrays.values():
            array.resize((room, *array.shape[1:]), refcheck=False)
