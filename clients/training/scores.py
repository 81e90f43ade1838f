"""One institution's share of a model's scores: the exact sum over its held-out persons, before noise.

Every value is a whole number of 2^-30, as in `statistics.py`. Each record is computed by itself, so that what a person
adds depends, to the last bit, on that person's records and the model alone: the kernels of a batch may round one record
otherwise where there is another beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sovfed.clients.training.judging import fitted
from sovfed.clients.training.statistics import WEIGHT
from sovfed.federation.metrics.bounded import bounded_scores
from sovfed.federation.statistics.scores import HALF

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.clients.data import Dataset
    from sovfed.clients.training.local import LocalTraining
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.statistics.scores import Scores


def score_totals(
    training: LocalTraining, records: Dataset, model: Vector, scale: Sums, scores: Scores
) -> tuple[npt.NDArray[np.float64], Sums, int]:
    """What the held-out persons of `records` add to the vector of `model`, shape [size], and the task's metric sums.

    Also how many records add nothing, since they cannot be read or fail the model: no other adds less for them.
    """
    task, rows, model = training.task, records.test, np.array(model)
    model.flags.writeable = False  # or it would be loaded anew for each record
    _, owners, counts = np.unique(records.persons[rows], return_inverse=True, return_counts=True)
    total, sums = np.zeros(scores.size, np.int64), np.zeros(task.evaluation_size)
    failed = 0
    for place, weight in enumerate((WEIGHT // counts)[owners].tolist()):
        try:
            ((outputs, targets),) = training.outputs(model, scale, rows[place : place + 1])
            fitting, losses = fitted(task, outputs, targets)
            shares = bounded_scores(task.metrics, fitting, targets, losses)[0]
            own = task.metrics.sums(fitting, targets, losses)
        except Exception:  # this record's own doing, whatever it is
            failed += 1
            continue
        total += np.trunc(weight * np.concatenate([[1.0], shares - HALF])).astype(np.int64)
        sums += own
    return total / WEIGHT, sums, failed
