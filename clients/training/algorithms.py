"""Local training as an algorithm wants it: plain, or with something that the institution keeps from round to round.

What each algorithm does here is its institution's half, in `federation/algorithms/`. What an institution evaluates is
the model that it would use: its own, or with its own parts, where it keeps any.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.personal import Learned
from sovfed.federation.algorithms import FEDAVG, LOCAL
from sovfed.federation.errors import ConfigError, ProtocolError, TrainingError
from sovfed.federation.messages import TrainRequest

if TYPE_CHECKING:
    from sovfed.federation.algorithms import Algorithm
    from sovfed.federation.messages import EvaluateRequest, Sums, Vector
    from sovfed.federation.tasks.layout import Layout


def _require_finite(learned: Learned) -> None:
    """Raises TrainingError: an algorithm may overflow where plain training did not."""
    for vector in (learned.update, learned.state):
        if vector is not None and not np.isfinite(vector).all():
            raise TrainingError("update or state is not finite")


class Learner(LocalTraining):
    """Local training under every algorithm. `state` is what was kept last, None in the institution's first round."""

    def learn(self, request: TrainRequest, state: Vector | None) -> Learned:
        """Evaluate what is in use, then train; training that fails leaves the update and the state as they were.

        Raises ConfigError and ProtocolError.
        """
        algorithm = self._algorithm(request)
        if request.control.size != (request.model.size if algorithm.variate else 0):
            raise ProtocolError(f"control of shape {request.control.shape} under '{request.algorithm}'")
        if request.evaluate:
            evaluation, cut = self.measure(self.model_in_use(request, state), request.scale, sampled=True)
        else:
            evaluation, cut = np.zeros(self.task.evaluation_size), False
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # what comes of it is looked at
                learned = self._learn(request, state, evaluation)
            _require_finite(learned)
        except TrainingError as error:
            return replace(self.nothing(request, state), evaluation=evaluation, cut=cut, failed=str(error))
        update = self.task.layout.sent(learned.update, request.model, request.units)
        return replace(learned, cut=cut, update=update) if cut or update is not learned.update else learned

    def nothing(self, request: TrainRequest, state: Vector | None = None) -> Learned:
        """What an institution that did not move has learnt, without an evaluation."""
        update = LOCAL[request.algorithm].idle(request.model, state)
        return Learned(update, 0.0, max(1, self.steps(request)), np.zeros(self.task.evaluation_size))

    def _learn(self, request: TrainRequest, state: Vector | None, evaluation: Sums) -> Learned:
        directed = DirectedRound(self, request)
        learning = LOCAL[request.algorithm].learn(directed, state)
        return Learned(learning.update, learning.loss, directed.steps, evaluation, learning.state)

    def model_in_use(self, request: TrainRequest | EvaluateRequest, state: Vector | None) -> Vector:
        """The model that this institution uses, shape [d], given the federation's."""
        return self._algorithm(request).in_use(request.model, state, self.task.layout)

    def _algorithm(self, request: TrainRequest | EvaluateRequest) -> Algorithm:
        """What the request asks for. Raises ConfigError if the task's model cannot be trained so."""
        algorithm = LOCAL[request.algorithm]
        if (
            isinstance(request, TrainRequest)
            and request.rate_units
            and (not request.plan.bounded or algorithm is not FEDAVG)
        ):
            raise ConfigError(f"'{request.optimizer}' under '{request.algorithm}' has no rate units")
        if reason := algorithm.refusal(self.task.layout):
            raise ConfigError(f"task '{self.task.name}' {reason}")
        return algorithm


class DirectedRound:
    """The `LocalRound` of a request."""

    def __init__(self, training: LocalTraining, request: TrainRequest) -> None:
        self._training, self._request = training, request
        self.model, self.control, self.learning_rate = request.model, request.control, request.learning_rate
        self.layout: Layout = training.task.layout
        self.steps = training.steps(request)
        self.settings = {name: float(getattr(request, name)) for name in LOCAL[request.algorithm].settings}

    def train(
        self, start: Vector | None = None, *, correction: Vector | None = None, anchor: Vector | None = None,
        proximal_mu: float | None = None,
    ) -> tuple[Vector, float]:  # fmt: skip
        """As `LocalRound.train`."""
        request = self._request if start is None else replace(self._request, model=start)
        if proximal_mu is not None:
            request = replace(request, proximal_mu=proximal_mu)
        return self._training.train(request, correction=correction, anchor=anchor)

    def only_trained(self, vector: Vector) -> Vector:
        """As `LocalRound.only_trained`."""
        return self._training.only_trained(vector)
