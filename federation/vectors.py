"""The flat vectors that travel, and how long one may be."""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

MAX_PARAMETERS: Final = 1_000_000_000  # of one vector, checked before allocation
Vector: TypeAlias = npt.NDArray[np.float32]  # shape [d], the model or an update
Sums: TypeAlias = npt.NDArray[np.float64]  # shape [k], totals over records
Bytes: TypeAlias = npt.NDArray[np.uint8]  # shape [n], a message of secure aggregation (federation/secagg/wire.py)
Words: TypeAlias = npt.NDArray[np.uint64]  # shape [w], a masked vector
