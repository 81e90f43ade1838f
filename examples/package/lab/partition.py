"""The partition `lab_referral`: the first institution gets half of the last class, the others share the rest evenly."""

import numpy as np
import numpy.typing as npt


def referral(
    config: object, labels: npt.NDArray[np.int64], classes: int, parts: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    shares = np.full((classes, parts), 1 / parts)
    if parts > 1:
        shares[-1] = [0.5, *(0.5 / (parts - 1) for _ in range(parts - 1))]
    return shares
