"""Whether a request is well-formed for its task: decided from the request and the task's public constants alone."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sovfed.federation.errors import ConfigError, ProtocolError
from sovfed.federation.messages import PrivateRequest, ProfileRequest, SumRequest, TrainRequest
from sovfed.federation.tasks import NAMES, Task, get_task, normalisation

if TYPE_CHECKING:
    from sovfed.federation.messages import Sums, Vector


def check_shapes(request: SumRequest) -> Task:
    """The task of `request`, whose vectors have the lengths that it declares.

    Raises ProtocolError on another length or an unknown task, ConfigError on what the task cannot do. Nothing here
    looks at records: what they are like is found out too late for a refusal.
    """
    if request.task not in NAMES:
        raise ProtocolError(f"unknown task {request.task[:64]!r}")
    task = get_task(request.task, normalisation=request.normalisation)
    if isinstance(request, ProfileRequest):
        return task
    if task.build is not None:  # the echo takes vectors of every length
        _length("model", request.model, task.parameters)
    if isinstance(request, PrivateRequest):
        return task
    if task.build is None:
        if request.algorithm != "sgd":
            raise ConfigError(f"task '{task.name}' trains nothing, so no algorithm either")
        return task
    _length("scale", request.scale, 2 * len(task.schema.features))
    if isinstance(request, TrainRequest):
        _length("control", request.control, request.model.size if request.algorithm == "scaffold" else 0)
    if request.algorithm == "fedbn" and not _has_normalisation(request.task, request.normalisation):
        raise ConfigError(f"task '{task.name}' has no normalisation layer that could stay here")
    return task


def sums_width(request: SumRequest, task: Task) -> int:
    """Length of the sums in the reply: features' totals, or the task's metrics."""
    return 1 + 2 * len(task.schema.features) if isinstance(request, ProfileRequest) else task.evaluation_size


def _length(name: str, vector: Vector | Sums, expected: int) -> None:
    if vector.size != expected:
        raise ProtocolError(f"{name} of shape {vector.shape}, expected ({expected},)")


@lru_cache(64)
def _has_normalisation(name: str, how: str) -> bool:
    build = get_task(name, normalisation=how).build
    return build is not None and bool(normalisation(build()).any())
