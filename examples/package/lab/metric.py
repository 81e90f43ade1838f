"""What an alarm is judged by: how many of the ill it misses, how many of the well it disturbs."""

import numpy as np
import numpy.typing as npt


class Alarms:
    """Five sums over records: right answers, missed, ill, false alarms, and all of them."""

    size = 5
    names = ("accuracy", "missed", "false_alarms")
    smaller = frozenset({"missed", "false_alarms"})

    def sums(
        self, outputs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], losses: object
    ) -> npt.NDArray[np.float64]:
        alarm, ill = outputs[:, 0] > 0, targets == 1
        counts = [(alarm == ill).sum(), (ill & ~alarm).sum(), ill.sum(), (alarm & ~ill).sum(), len(ill)]
        return np.array(counts, np.float64)

    def summarise(self, sums: npt.NDArray[np.float64], unit: float = 1.0) -> dict[str, float]:
        right, missed, ill, disturbed, everybody = sums
        shares = {"accuracy": (right, everybody), "missed": (missed, ill), "false_alarms": (disturbed, everybody - ill)}
        return {name: float(count / of) for name, (count, of) in shares.items() if of > 0}
