"""Local training as a strategy wants it: plain, or with something that the institution keeps from round to round.

    sgd       FedAvg, FedProx and whatever only the server does otherwise
    scaffold  Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1 with option II of cᵢ⁺
    fednova   Wang et al. 2020, arXiv:2007.07481, equation 9 with plain SGD: the update per step
    fedbn     Li et al. 2021, arXiv:2102.07623, Algorithm 1: normalisation layers are the institution's own
    fedper    Arivazhagan et al. 2019, arXiv:1912.00818, with one pass over both halves: the task's personal parts are
    ditto     Li et al. 2021, arXiv:2012.04221, Algorithm 1: FedAvg, and a personal model beside it

What an institution evaluates is the model that it would use: its own under `fedbn`, `fedper` and `ditto`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.personal import Learned
from sovfed.federation.errors import ConfigError, ProtocolError, TrainingError

if TYPE_CHECKING:
    from sovfed.federation.messages import EvaluateRequest, Sums, TrainRequest, Vector


def _require_finite(learned: Learned) -> None:
    """Raises TrainingError: an algorithm may overflow where plain training did not."""
    for vector in (learned.update, learned.state):
        if vector is not None and not math.isfinite(max(float(vector.max()), -float(vector.min()))):
            raise TrainingError("update or state is not finite")


class Learner(LocalTraining):
    """Local training under every algorithm. `state` is what was kept last, None in the institution's first round."""

    def learn(self, request: TrainRequest, state: Vector | None) -> Learned:
        """Evaluate what is in use, then train; training that fails leaves the update and the state as they were.

        Raises ConfigError and ProtocolError.
        """
        if request.control.size != (request.model.size if request.algorithm == "scaffold" else 0):
            raise ProtocolError(f"control of shape {request.control.shape} under '{request.algorithm}'")
        in_use = self.model_in_use(request, state)
        evaluation, cut = np.zeros(self.task.evaluation_size), False
        if request.evaluate:
            evaluation, cut = self.measure(in_use, request.scale)
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what comes of it is looked at
                learned = self._learn(request, state, in_use, evaluation)
            _require_finite(learned)
        except TrainingError as error:
            return replace(self.nothing(request, state), evaluation=evaluation, cut=cut, failed=str(error))
        return replace(learned, cut=cut, update=self.task.layout.sent(learned.update, request.model))

    def nothing(self, request: TrainRequest, state: Vector | None = None) -> Learned:
        """What an institution that did not move has learnt, without an evaluation."""
        update = np.zeros_like(request.model)
        if request.algorithm == "scaffold":
            update = np.concatenate([update, np.zeros_like(request.model) if state is None else state])
        return Learned(update, 0.0, max(1, self.steps(request)), np.zeros(self.task.evaluation_size))

    def _learn(self, request: TrainRequest, state: Vector | None, in_use: Vector, evaluation: Sums) -> Learned:
        steps = self.steps(request)
        match request.algorithm:
            case "scaffold":
                own = np.zeros_like(request.model) if state is None else state
                correction = self.only_trained(request.control - own)
                update, loss = self.train(request, correction=correction)
                gradient = self.only_trained(update / np.float32(-steps * request.learning_rate)) - correction
                return Learned(np.concatenate([update, gradient]), loss, steps, evaluation, gradient)
            case "fednova":
                update, loss = self.train(request)
                return Learned(update / np.float32(steps), loss, steps, evaluation)
            case "fedbn" | "fedper":
                update, loss = self.train(replace(request, model=in_use))
                return Learned(
                    np.where(self._own(request), np.float32(0), update), loss, steps, evaluation, in_use + update
                )
            case "ditto":
                update, loss = self.train(request)
                towards = replace(request, model=in_use, proximal_mu=request.personal_lambda)
                change, _ = self.train(towards, anchor=request.model)
                return Learned(update, loss, steps, evaluation, in_use + change)
            case _:
                update, loss = self.train(request)
                return Learned(update, loss, steps, evaluation)

    def model_in_use(self, request: TrainRequest | EvaluateRequest, state: Vector | None) -> Vector:
        """The model that this institution uses, shape [d], given the federation's."""
        match request.algorithm:
            case "ditto" if state is not None:
                return state
            case "fedbn" | "fedper" if state is not None:
                return np.where(self._own(request), state, request.model)
            case _:
                return request.model

    def _own(self, request: TrainRequest | EvaluateRequest) -> npt.NDArray[np.bool_]:
        """The places of what stays here."""
        if reason := self.task.layout.refusal(request.algorithm):
            raise ConfigError(f"task '{self.task.name}' {reason}")
        return self.task.layout.own(request.algorithm)
