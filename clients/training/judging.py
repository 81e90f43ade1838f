"""What a model's outputs are worth, as sums in which no record and no model can do more than its share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch

from sovfed.clients.training.feed import Targets, tensors_of
from sovfed.federation.errors import ConfigError
from sovfed.federation.secagg.ring import saturated

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums
    from sovfed.federation.tasks import Task

LARGEST_OUTPUT: Final = 1e3  # of a model, and of the loss of one record, as they are measured


def judged(task: Task, outputs: npt.NDArray[np.float32], targets: Targets) -> tuple[Sums, bool]:
    """The task's metric sums of `outputs` [n, …], and whether one of them had to be cut (`fitted`)."""
    fitting, losses = fitted(task, outputs, targets)
    return task.metrics.sums(fitting, targets, losses), fitting is not outputs


def fitted(
    task: Task, outputs: npt.NDArray[np.float32], targets: Targets
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """`outputs` [n, …] as they are measured, and the losses of the records [n].

    Each record by itself: what is not a number counts as 0, and outputs and losses are cut to ±`LARGEST_OUTPUT`, which
    no sane model comes near. So a record moves a sum by a bounded amount, the records beside it not at all, and no
    model can make an evaluation fail.
    """
    if task.loss is None:
        raise ConfigError(f"task '{task.name}' has no model to evaluate")
    fitting = saturated(outputs, LARGEST_OUTPUT)
    losses = task.loss(torch.from_numpy(fitting), tensors_of(targets)).numpy()
    return fitting, saturated(losses, LARGEST_OUTPUT)
