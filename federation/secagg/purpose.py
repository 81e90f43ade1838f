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

    @property
    def dtype(self) -> type[np.float32 | np.int32]:
        """Of the vectors that are summed."""
        return np.int32 if self is Purpose.STEP else np.float32

    @property
    def without_privacy(self) -> bool:
        """Whether the contribution is the records' own: nothing but the sum hides it, and nothing is charged."""
        return self not in (Purpose.STEP, Purpose.SILO)
