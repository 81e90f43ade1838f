"""The work of an admitted request: a reply in the clear, or a contribution to a sum whatever comes of the work."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from sovfed.clients.trainer.workload import nothing
from sovfed.federation.algorithms import LOCAL
from sovfed.federation.errors import TrainingError
from sovfed.federation.messages import (
    EvaluateReply,
    EvaluateRequest,
    ProfileReply,
    ProfileRequest,
    Reply,
    TrainReply,
    TrainRequest,
    Vector,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.trainer.loaded import Loaded
    from sovfed.clients.trainer.masking import Masking
    from sovfed.clients.trainer.telling import Telling
    from sovfed.clients.trainer.workload import Workload
    from sovfed.clients.training.personal import PersonalStates
    from sovfed.federation.messages import Sums
    from sovfed.federation.secagg.client import Permit
    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)


class Computing:
    """Learns, evaluates and adds up on what is `loaded`; what an algorithm keeps from round to round is in `states`."""

    def __init__(
        self,
        loaded: Loaded,
        states: PersonalStates | None,
        telling: Telling,
        keep_score: Callable[[EvaluateRequest, Task, Sums], None],
    ) -> None:
        """`keep_score` is told what a candidate is worth on the own held-out records."""
        self._loaded, self._states, self._telling, self._keep_score = loaded, states, telling, keep_score

    def in_the_clear(self, request: ProfileRequest | TrainRequest | EvaluateRequest, task: Task) -> Reply:
        """Raises TrainingError if no update came of it."""
        start = time.monotonic()
        reply, failed, _ = self._compute(request, task, self._loaded.workload(task), start)
        if failed:
            raise TrainingError(failed)
        return reply

    def masked(
        self, request: ProfileRequest | TrainRequest | EvaluateRequest, task: Task, masking: Masking, permit: Permit
    ) -> Reply:
        """The reply whatever comes of the work: one that fails on the records is nothing, inside the sum."""
        start = time.monotonic()
        workload = self._loaded.workload(task)
        try:
            reply, failed, cut = self._compute(request, task, workload, start)
        except Exception as error:  # may be one record's doing
            self._telling.error(error)
            reply, failed, cut = nothing(request, workload, task), repr(error), True
        if failed:
            self._telling.lacking(request, f"nothing of this institution goes into it: {failed}")
        spoilt = bool(failed) or cut
        return masking.mask(request.run, permit, reply, lambda: time.monotonic() - start, spoilt)

    def _compute(
        self, request: ProfileRequest | TrainRequest | EvaluateRequest, task: Task, workload: Workload, start: float
    ) -> tuple[ProfileReply | TrainReply | EvaluateReply, str, bool]:
        """The reply, why there is no update in it ("" if there is), and whether an output of the model was cut."""
        if isinstance(request, ProfileRequest):
            return ProfileReply(sums=workload.profile()), "", False
        if isinstance(request, EvaluateRequest):
            evaluation, cut = workload.measure(self._in_use(request, workload), request.scale)
            if request.candidates:
                self._keep_score(request, task, evaluation)
            seconds = time.monotonic() - start
            return EvaluateReply(round=request.round, seconds=seconds, evaluation=evaluation), "", cut
        learned = workload.learn(request, self._state(request, request.round - 1))
        if learned.state is not None and self._states is not None:
            self._states.save(request, learned.state)
        seconds = time.monotonic() - start
        log.info("run %s, round %d: %d records, %.3f s", request.run, request.round, workload.count, seconds)
        reply = TrainReply(
            round=request.round, count=workload.count, seconds=seconds, train_loss=learned.loss, update=learned.update,
            evaluation=learned.evaluation, steps=learned.steps,
        )  # fmt: skip
        return reply, learned.failed, learned.cut

    def _in_use(self, request: EvaluateRequest, workload: Workload) -> Vector:
        """The model to evaluate; a personal one is then kept as it is, for `sovfed client personal`."""
        state = self._state(request, request.round)
        model = workload.model_in_use(request, state)
        if model is not request.model and self._states is not None:
            self._states.save(request, model)
        return model

    def _state(self, request: TrainRequest | EvaluateRequest, last: int) -> Vector | None:
        """What was kept after a round up to `last`."""
        if self._states is None or not LOCAL[request.algorithm].keeps:
            return None
        return self._states.load(request, last)
