"""What a model's outputs mean: probabilities of classes or labels, numbers in their unit, survival over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Column

CLASSES: Final = "classes"  # of one target: outputs [n, classes], or [n, 1], the logit of the second of two
LABELS: Final = "labels"  # several booleans: a logit each
NUMBERS: Final = "numbers"  # one or more numbers, scaled like their targets
SURVIVAL: Final = "survival"  # time and event: a logit of the hazard in each interval between `edges` of the metrics
RAW: Final = "raw"  # anything else stays as the model gives it
Predictions = dict[str, npt.NDArray[Any]]  # by name, the first dimension the record


def kind_of(task: Task) -> str:
    """Which of these kinds the outputs of `task` are of, by its schema's targets."""
    targets = task.schema.targets
    kinds = [column.kind for column in targets]
    if cuts(task) and len(targets) > 1:
        return SURVIVAL
    if task.schema.classes:
        return CLASSES
    if kinds and all(kind == "boolean" for kind in kinds):
        return LABELS
    numeric = bool(kinds) and all(kind in ("number", "date") for kind in kinds)
    return NUMBERS if numeric and task.build is not None and _counts(task) else RAW


def cuts(task: Task) -> tuple[float, ...]:
    """The ends of the intervals of a survival model, whose metrics hold all edges; () of any other."""
    edges = getattr(task.metrics, "edges", ())
    return tuple(float(edge) for edge in edges[1:])


class Reading(nn.Module):
    """A model's outputs [n, …] in, what they mean out: [n, classes], [n, labels], [n, numbers], [n, cuts]."""

    middle: Tensor
    width: Tensor

    def __init__(self, task: Task, scale: Sums) -> None:
        super().__init__()
        self.kind = kind_of(task)
        pairs = task.transform.affine(scale)
        targets = task.schema.targets if self.kind == NUMBERS else ()
        shift = [np.ravel(pairs[column.name][0]) for column in targets]
        factor = [np.ravel(pairs[column.name][1]) for column in targets]
        empty = np.zeros(0)
        self.register_buffer("middle", torch.tensor(np.concatenate([empty, *shift]), dtype=torch.float32))
        self.register_buffer("width", torch.tensor(1.0 / np.concatenate([empty, *factor]), dtype=torch.float32))

    def forward(self, outputs: Tensor) -> Tensor:
        if self.kind == CLASSES:
            if outputs.dim() == 2 and outputs.shape[1] > 1:
                return outputs.softmax(1)
            chance = outputs.flatten().sigmoid()
            return torch.stack([1.0 - chance, chance], 1)
        if self.kind == LABELS:
            return outputs.reshape(outputs.shape[0], -1).sigmoid()
        if self.kind == NUMBERS:
            return outputs.reshape(outputs.shape[0], -1) * self.width + self.middle
        if self.kind == SURVIVAL:
            return torch.nn.functional.logsigmoid(-outputs).cumsum(1).exp()  # Π (1 − hazard)
        return outputs


def named(task: Task, kind: str, values: npt.NDArray[np.float32]) -> Predictions:
    """What `Reading` gave, by name: the class in its own word and `probability_WORD`; a number; `survival_TIME`."""
    targets = task.schema.targets
    if kind == CLASSES:
        words = np.array(task.schema.classes, dtype=object)
        chances = {f"probability_{word}": values[:, index] for index, word in enumerate(words)}
        return {targets[0].name: words[values.argmax(1)], **chances}
    if kind == LABELS:
        predictions: Predictions = {}
        for index, column in enumerate(targets):
            predictions[column.name] = np.where(values[:, index] > 0.5, "yes", "no").astype(object)
            predictions[f"probability_{column.name}"] = values[:, index]
        return predictions
    if kind == NUMBERS:
        return dict(zip(_cells(targets), values.T, strict=True))
    if kind == SURVIVAL:
        curve = {f"survival_{cut:g}": values[:, index] for index, cut in enumerate(cuts(task))}
        return {"risk": 1.0 - values[:, -1], **curve}
    return {"output": values}


def _counts(task: Task) -> bool:
    """Whether the model gives as many values as the targets have."""
    expected = len(_cells(task.schema.targets))
    inputs, _ = task.made_up(2)
    model = task.model().eval()
    with torch.no_grad():
        outputs: Tensor = model(inputs)
    return outputs.shape[0] == 2 and outputs.numel() == 2 * expected


def _cells(targets: tuple[Column, ...]) -> list[str]:
    return [cell for column in targets for cell in column.cells()]
