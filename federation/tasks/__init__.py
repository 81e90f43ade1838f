"""Tasks: what is learnt from which columns, with which model, loss and metrics. One file a task.

A run names a task; both sides look the name up here, so no message and no configuration ever carries code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.config import LEAST_SPREAD
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import OWN
from sovfed.federation.schema import nearest

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import Tensor
    from torch.nn import Module

    from sovfed.federation.config import TaskConfig
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.metrics import Metrics

NAMES: Final = (
    "breast_cancer", "digits", "digits_cnn", "digits_linear", "echo", "heart", "pneumonia", "statutes",
    "synthetic_images", "synthetic_text",
)  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """A numeric column whose values must lie in [low, high]."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Schema:
    """The columns a record has. `person` is the column that groups a person's records; "" declares a person a row."""

    features: tuple[Feature, ...]
    label: str
    classes: tuple[str, ...]  # meaning of label 0, 1, …
    person: str = ""


@dataclass(frozen=True)
class Task:
    """A learning task. Its model crosses the wire as a flat vector, in the order of `state_tensors`."""

    name: str
    title: str
    schema: Schema
    parameters: int  # length d of the flat vector
    metrics: Metrics
    headline: str  # the metric to report first
    simulated_split: bool  # True: one data set cut into made-up institutions
    licence: str
    citation: str
    build: Callable[[], Module] | None  # a freshly initialised model; None: nothing is trained
    loss: Callable[[Tensor, Tensor], Tensor] | None  # logits [n, outputs], labels [n] → loss of each record [n]
    standardised: bool = (
        True  # features are scaled with the federated mean and standard deviation, else by their bounds
    )
    symbols: bool = False  # features are codes, integers within their bounds, which are not scaled at all
    evaluation_batch: int = 8_192  # records whose outputs are computed at once

    @property
    def evaluation_size(self) -> int:
        """Length of the evaluation vector."""
        return self.metrics.size


def get_task(name: str, parameters: int | None = None, normalisation: str = OWN) -> Task:
    """The task called `name`; `parameters` is the length of the echo's vector, other tasks have their own.

    `normalisation` "group" makes every BatchNorm of its model a GroupNorm. Raises ConfigError with the nearest known
    name.
    """
    if normalisation != OWN:
        from sovfed.federation.tasks.group_norm import grouped

        return grouped(name)
    match name:
        case "breast_cancer":
            from sovfed.federation.tasks.breast_cancer import TASK
        case "digits":
            from sovfed.federation.tasks.digits import TASK
        case "digits_cnn":
            from sovfed.federation.tasks.digits_cnn import TASK
        case "digits_linear":
            from sovfed.federation.tasks.digits_linear import TASK
        case "echo":
            from sovfed.federation.tasks.echo import TASK

            return TASK if parameters is None else replace(TASK, parameters=parameters)
        case "heart":
            from sovfed.federation.tasks.heart import TASK
        case "pneumonia":
            from sovfed.federation.tasks.pneumonia import TASK
        case "statutes":
            from sovfed.federation.tasks.statutes import TASK
        case "synthetic_images":
            from sovfed.federation.tasks.synthetic_images import TASK
        case "synthetic_text":
            from sovfed.federation.tasks.synthetic_text import TASK
        case _:
            raise ConfigError(f"unknown task '{name[:64]}'{nearest(name, NAMES)}")
    return TASK


def configured_task(config: TaskConfig) -> Task:
    """The task that `config` names, with the model that it asks for."""
    return get_task(config.name, config.parameters, config.normalisation)


def public_scale(task: Task) -> Sums:
    """[middle (f), half width (f)] of the features' declared bounds: a scale that no record has any influence on.

    Zeros and ones for symbols, which stay what they are.
    """
    if task.symbols:
        return np.repeat([0.0, 1.0], len(task.schema.features))
    low, high = bounds(task)
    return np.concatenate([(low + high) / 2, (high - low) / 2])


def bounds(task: Task) -> tuple[Sums, Sums]:
    """The declared least and greatest value of each feature, shape [f]."""
    low = np.array([feature.low for feature in task.schema.features], np.float64)
    high = np.array([feature.high for feature in task.schema.features], np.float64)
    return low, high


def standardisation(task: Task, profile: Sums) -> Sums:
    """[mean (f), standard deviation (f)] of a profile [n, Σx (f), Σx² (f)], within the declared bounds.

    A deviation is at least `LEAST_SPREAD` of its feature's declared range: by a smaller one a model could look at
    single values as through a magnifying glass, so institutions refuse it.
    """
    low, high = bounds(task)
    total, squares = np.split(profile[1:] / max(profile[0], 1.0), 2)
    mean, spread = np.clip(total, low, high), np.sqrt(np.maximum(squares - total**2, 0.0))
    return np.concatenate([mean, np.clip(spread, LEAST_SPREAD * (high - low), high - low)])


def state_tensors(module: Module) -> list[Tensor]:
    """What of `module` is in the flat vector: its parameters in torch's order, then its floating-point buffers.

    The buffers are running statistics, which an average of models needs as much as their weights.
    """
    return [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]


def normalisation(module: Module) -> npt.NDArray[np.bool_]:
    """Which places of the flat vector (shape [d]) belong to normalisation layers."""
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase

    layers = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
    mine = {
        id(tensor)
        for part in module.modules()
        if isinstance(part, layers)
        for tensor in (*part.parameters(), *part.buffers())
    }
    return np.concatenate([np.full(tensor.numel(), id(tensor) in mine) for tensor in state_tensors(module)])


def initial_vector(task: Task, seed: int) -> Vector:
    """The task's initial model, shape [d]: the same for the same seed, and zeros for a task that is not trained."""
    if task.build is None:
        return np.zeros(task.parameters, dtype=np.float32)
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vector: Vector = torch.cat([tensor.detach().reshape(-1) for tensor in state_tensors(task.build())]).numpy()
    return vector
