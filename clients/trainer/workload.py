"""What a trainer does for one task: a `Learner` over records, or the echo, which has none."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from sovfed.clients.training.personal import Learned
from sovfed.federation.algorithms import FEDAVG
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import (
    EvaluateReply,
    EvaluateRequest,
    ProfileReply,
    ProfileRequest,
    Sums,
    TrainReply,
    TrainRequest,
    Vector,
)
from sovfed.federation.tasks import Task


class Workload(Protocol):
    """One task at this institution: `Learner` of `clients/training/algorithms.py`, or the echo."""

    @property
    def count(self) -> int:
        """Training records."""

    @property
    def device_name(self) -> str: ...

    def warm_up(self) -> None: ...

    def profile(self) -> Sums: ...

    def learn(self, request: TrainRequest, state: Vector | None) -> Learned: ...

    def model_in_use(self, request: TrainRequest | EvaluateRequest, state: Vector | None) -> Vector: ...

    def measure(self, model: Vector, scale: Sums) -> tuple[Sums, bool]: ...

    def nothing(self, request: TrainRequest, state: Vector | None = None) -> Learned: ...


class Echo:
    """The workload without records: every update is one at every place, whatever the model's length."""

    count = 1
    device_name = "cpu"

    def __init__(self, task: Task) -> None:
        self._task, self._ones = task, np.ones(0, dtype=np.float32)

    def warm_up(self) -> None:
        pass

    def profile(self) -> Sums:
        return np.zeros(0)

    def learn(self, request: TrainRequest, state: Vector | None) -> Learned:
        if request.algorithm != FEDAVG.local:
            raise ConfigError("the echo trains nothing, so no algorithm either")
        if self._ones.shape != request.model.shape:
            self._ones = np.ones_like(request.model)
            self._ones.flags.writeable = False
        return Learned(self._ones, 0.0, 1, self.measure(request.model, request.scale)[0])

    def nothing(self, request: TrainRequest, state: Vector | None = None) -> Learned:
        return Learned(np.zeros_like(request.model), 0.0, 1, np.zeros(self._task.evaluation_size))

    def model_in_use(self, request: TrainRequest | EvaluateRequest, state: Vector | None) -> Vector:
        return request.model

    def measure(self, model: Vector, scale: Sums) -> tuple[Sums, bool]:
        return np.ones(self._task.evaluation_size), False


def nothing(
    request: ProfileRequest | TrainRequest | EvaluateRequest, workload: Workload, task: Task
) -> ProfileReply | TrainReply | EvaluateReply:
    """The reply of an institution that has nothing to add: zeros, under its usual weight."""
    if isinstance(request, ProfileRequest):
        return ProfileReply(sums=np.zeros(task.transform.profile_size))
    if isinstance(request, EvaluateRequest):
        return EvaluateReply(round=request.round, seconds=0.0, evaluation=np.zeros(task.evaluation_size))
    reply = workload.nothing(request)
    return TrainReply(
        round=request.round, count=workload.count, seconds=0.0, train_loss=0.0, update=reply.update,
        evaluation=reply.evaluation, steps=reply.steps,
    )  # fmt: skip
