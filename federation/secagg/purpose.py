"""What is summed."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What is summed. Of the same records, sums of PROFILE, TRAIN and EVALUATE can be differenced with each other."""

    PROFILE = 0
    TRAIN = 1
    EVALUATE = 2
    STEP = 3  # of integers that carry their own noise: neither weighted nor rounded
    SILO = 4  # of updates that each carry all of their noise
    COUNT = 5  # of integers as in a step: a table, whose noise hides persons and not institutions

    @property
    def dtype(self) -> type[np.float32 | np.int32]:
        """Of the vectors that are summed."""
        return np.int32 if self in (Purpose.STEP, Purpose.COUNT) else np.float32

    @property
    def without_privacy(self) -> bool:
        """Whether the contribution is the records' own: nothing but the sum hides it, and nothing is charged."""
        return self.tells_apart and self is not Purpose.COUNT

    @property
    def tells_apart(self) -> bool:
        """Whether two sums, of institutions that differ by few, tell what those few hold."""
        return self not in (Purpose.STEP, Purpose.SILO)
