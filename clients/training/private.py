"""Private training at one institution: persons sampled, gradients clipped, noise added, the ledger charged.

What `PrivateTraining.update` returns is already private for the event that the ledger was charged with, given that the
secure sum opens over at least `honest` contributions that no adversary knows (`distributed`, `institution`), or by
itself (`silo`). Features are scaled with the task's declared bounds: only gradients are computed from the records.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import torch

from sovfed.clients.dpsgd.step import LevelSum, PrivateStep
from sovfed.clients.ledger.book import HOME, PrivacyLedger
from sovfed.clients.ledger.entries import Grant, Plan, Release, Whose
from sovfed.clients.trainer.masking import PrivateUpdate
from sovfed.clients.training.device import choose_device
from sovfed.clients.training.feed import Feed
from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.scores import score_totals
from sovfed.clients.training.statistics import totals
from sovfed.federation.errors import ConfigError, PrivacyError, ProtocolError
from sovfed.federation.messages import LATER, PrivateRequest, TrainRequest, Vector, local_work
from sovfed.federation.privacy.compatibility import EXAMPLES, why_not_noised, why_not_private
from sovfed.federation.privacy.discrete_gaussian import discrete_gaussian
from sovfed.federation.privacy.events import Event
from sovfed.federation.privacy.noise import Units, release, reserved, share_variance
from sovfed.federation.privacy.sampling import at_most, poisson_sample
from sovfed.federation.secagg.request import whole_run
from sovfed.federation.statistics.question import question_of
from sovfed.federation.statistics.scores import scores_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from torch import Tensor

    from sovfed.clients.data import Dataset
    from sovfed.federation.messages import Sums
    from sovfed.federation.secagg.ring import Integers
    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)
SumNumber: TypeAlias = tuple[bytes, int]  # the roster's digest, and the number of the sum under it
ReleaseKey: TypeAlias = tuple[SumNumber, str, str, int, Plan, bytes]
NO_DIGEST: Final = "0" * 64  # of a release that was not made yet
CONSTANTS: Final = ("round", "model", "begin", "run", "scale")  # fields of a request that are not constant over a run
SCORED: Final = ("candidates", "scores")  # fields that are left out where they say nothing: plans were kept before them


class PrivateTraining:
    """The private workload of one task. `ledger` is None in a simulation, where nobody's data are protected."""

    def __init__(
        self,
        task: Task,
        records: Dataset,
        *,
        site: str,
        device: str,
        ledger: PrivacyLedger | None,
        whose: Whose = HOME,
        most_epochs: int | None = None,
        keep_score: Callable[[PrivateRequest, Task, Sums], None] = lambda _request, _task, _sums: None,
        lacking: Callable[[PrivateRequest, str], None] = lambda _request, _why: None,
    ) -> None:
        """`keep_score` is told what a candidate is worth on the own held-out records, `lacking` of what a sum lacks."""
        if task.build is None or task.loss is None:
            raise ConfigError(f"task '{task.name}' trains nothing, so there is nothing to make private")
        if records.not_private:
            raise PrivacyError(records.not_private)
        self.task, self._records, self._ledger, self._whose = task, records, ledger, whose
        self._site, self._device, self._most_epochs, self._keep_score = site, device, most_epochs, keep_score
        self._lacking = lacking
        self._feed = Feed(task, records, task.transform.public_scale, choose_device(device))
        self._rows = torch.from_numpy(records.train)
        persons = np.unique(records.persons[records.train], return_inverse=True)[1]
        self._persons = torch.from_numpy(persons.astype(np.int64))
        self._several = records.several_records
        self._count = int(self._persons.max()) + 1 if len(self._persons) else 0
        self._steps: dict[float, PrivateStep] = {}
        self._kept: tuple[ReleaseKey, PrivateUpdate] | None = None

    def update(self, request: PrivateRequest, room: int, number: SumNumber | None = None) -> PrivateUpdate:
        """The round's contribution, paid for in the ledger before this returns.

        `number` is the sum that it goes into, `room` the largest integer that the ring has a place for. Another attempt
        at the same sum gets the very same release, since of all attempts one sum at most is ever opened; any other
        sum a new one, which is charged. Raises PrivacyError if the ledger refuses, or the noise does not fit the ring.
        """
        if number is not None and self._kept is not None and self.keeps(request, number):
            return self._kept[1]
        ledger, base_run = self._ledger, whole_run(request.run)
        grant = None
        if ledger is not None:
            grant = ledger.authorise(request.grant, plan_of(request), asked_in=base_run, whose=self._whose)
        if request.mechanism == "silo":
            values: Vector | Integers = self._descend(request)
        else:
            values = self._noised(request, self._total(request), room)
        if grant is not None and ledger is not None:
            self._spend(ledger, grant, request, values)
        update = PrivateUpdate(values)
        self._kept = None if number is None else (_key(request, number), update)
        return update

    def keeps(self, request: PrivateRequest, number: SumNumber) -> bool:
        """Whether the release for that sum was made and paid for already."""
        return self._kept is not None and self._kept[0] == _key(request, number)

    def _total(self, request: PrivateRequest) -> npt.NDArray[np.float64]:
        """What is released with noise, shape [d]: a person moves it by the clip at most."""
        if request.statistics:
            return self._counts(request)
        if request.candidates:
            return self._scores(request)
        if request.mechanism == "institution":
            return self._local_update(request)
        return self._sum(request, request.model)

    def _counts(self, request: PrivateRequest) -> npt.NDArray[np.float64]:
        """What this institution's persons add to a table of statistics; nothing if that fails."""
        question = question_of(request, self.task.schema)
        try:
            total, failed = totals(self._records, self.task.schema, question)
        except Exception:  # of all records: one by itself takes nobody else out of the sum
            log.exception("round %d: nothing was counted; nothing but noise is released", request.round)
            self._lacking(request, "nothing was counted")
            return np.zeros(question.size)
        if failed:
            self._lacking(request, f"{failed} records could not be counted")
        return total

    def _scores(self, request: PrivateRequest) -> npt.NDArray[np.float64]:
        """What the scores of this institution's held-out persons add to a candidate's; nothing if that fails."""
        scores = scores_of(request, self.task.metrics)
        training = LocalTraining(self.task, self._records, site=self._site, device=self._device)
        try:
            total, sums, failed = score_totals(training, self._records, request.model, request.scale, scores)
        except Exception:  # of all records: one by itself takes nobody else out of the sum
            log.exception("model %d: nothing was scored; nothing but noise is released", request.round)
            self._lacking(request, "nothing was scored")
            return np.zeros(scores.size)
        if failed:
            self._lacking(request, f"{failed} held-out records could not be scored")
        self._keep_score(request, self.task, sums)
        return total

    def _sum(self, request: PrivateRequest, model: Vector) -> npt.NDArray[np.float64]:
        """The sum of the sampled persons' clipped gradients at `model`, shape [d]."""
        drawn, step, flat = self._drawn(request), self._step(request.clip), torch.from_numpy(np.array(model))
        rows, owners = self._rows[drawn], self._persons[drawn]
        try:
            total = step.clipped_sum(flat, *self._feed.take(rows), owners)[0]
        except Exception:  # may be one record's doing, which neither a refusal nor the others' absence may tell
            log.exception("round %d: some persons fail; the others are taken without them", request.round)
            sums = LevelSum()
            sums.add([torch.zeros(len(flat), dtype=torch.float64)])
            failed, total = self._others(step, flat, rows, owners, sums), sums.total()[0]
            self._lacking(request, f"{failed} persons of a step could not be trained on")
        return total.cpu().numpy()

    def _drawn(self, request: PrivateRequest) -> torch.Tensor:
        """Places of the sampled persons' training records, ascending: of each at most `person_records`."""
        chosen = torch.zeros(self._count, dtype=torch.bool)
        chosen[torch.from_numpy(poisson_sample(self._count, request.sampling_rate))] = True
        drawn = chosen[self._persons].nonzero().flatten()
        if request.person_records:
            drawn = drawn[torch.from_numpy(at_most(self._persons[drawn].numpy(), request.person_records))]
        return drawn

    def _others(self, step: PrivateStep, flat: Tensor, rows: Tensor, owners: Tensor, sums: LevelSum) -> int:
        """Add to `sums` who can be computed, half by half down to single persons; how many persons cannot.

        Those alone are left out: else one of them would move the sum by everybody's part, which the noise is not for.
        """
        persons, failed = torch.unique(owners), 0
        for part in persons.tensor_split(2) if len(persons) > 1 else (persons,):
            own = torch.isin(owners, part)
            try:
                sums.add([step.clipped_sum(flat, *self._feed.take(rows[own]), owners[own])[0].cpu()])
            except Exception:
                failed += 1 if len(part) == 1 else self._others(step, flat, rows[own], owners[own], sums)
        return failed

    def _noised(self, request: PrivateRequest, total: npt.NDArray[np.float64], room: int) -> Integers:
        """`total` in units, with this institution's share of the noise."""
        units = Units(request.clip, total.size, request.grid_bits)
        variance, reserve = noise_reserve(request, total.size, room)
        bound = room - reserve  # cutting the sum to a box moves no person's influence up
        exact = units.quantise(total)
        if (request.statistics or request.candidates) and exact.max() > bound:  # told here alone
            log.warning("round %d: counts above %.0f do not fit the ring, and were cut to it", request.round,
                        units.dequantise(np.array([bound]))[0])  # fmt: skip
        integers = np.clip(exact, -bound, bound) + discrete_gaussian(total.size, variance)
        return integers.astype(np.int32)

    def _descend(self, request: PrivateRequest) -> Vector:
        """`steps` local steps, each with all of its noise: the update, shape [d]."""
        model = request.model.astype(np.float64)
        for _ in range(request.steps):
            total = release(self._sum(request, model.astype(np.float32)), request.clip, request.noise_multiplier)
            model -= request.learning_rate / request.batch * total
        return (model - request.model).astype(np.float32)

    def _local_update(self, request: PrivateRequest) -> npt.NDArray[np.float64]:
        """The update of ordinary local training, clipped to norm C, shape [d]; zero if it fails.

        In float64, where 2^-20 of the clip is more than the rounding of norm and product for any d ≤ 2^32.
        """
        training = LocalTraining(
            self.task, self._records, site=self._site, device=self._device, most_epochs=self._most_epochs
        )
        train_request = TrainRequest(
            run=request.run, round=request.round, task=request.task, seed=request.seed,
            local_epochs=request.local_epochs, batch_size=request.batch_size,
            learning_rate=request.learning_rate, proximal_mu=0.0, model=request.model,
            scale=self.task.transform.public_scale, **local_work(request),
        )  # fmt: skip
        try:
            update, _ = training.train(train_request)
        except Exception:  # may be one record's doing, which a refusal would tell
            log.exception("round %d: no update; nothing but noise is released", request.round)
            return np.zeros(request.model.size)
        norm = float(np.linalg.norm(update.astype(np.float64)))
        return update.astype(np.float64) * min(1.0, (1 - 2.0**-20) * request.clip / max(norm, 1e-300))

    def _step(self, clip: float) -> PrivateStep:
        if clip not in self._steps:
            self._steps.clear()  # a run has one clip, and a step holds a model
            if self.task.loss is None:
                raise ConfigError(f"task '{self.task.name}' trains nothing")
            self._steps[clip] = PrivateStep(
                self.task.model(), self.task.loss, clip, example=self.task.made_up(EXAMPLES),
                several_records=self._several, device=choose_device(self._device),
            )  # fmt: skip
        return self._steps[clip]

    def _spend(self, ledger: PrivacyLedger, grant: Grant, request: PrivateRequest, vector: Vector | Integers) -> None:
        spent = _release(ledger, grant, request, ledger.digest(vector.tobytes()))
        receipt = ledger.spend(grant, spent, asked_in=whole_run(request.run))
        log.info("round %d: ε %.3f, ledger head %s", request.round, receipt.epsilon_after, receipt.head[:16])


def admit(
    request: PrivateRequest,
    task: Task,
    room: int,
    ledger: PrivacyLedger | None,
    *,
    paid: bool = False,
    whose: Whose = HOME,
) -> None:
    """Raise what can be refused without a record: by constants, or by the ledger, which reserves the run's steps.

    `paid`: the release that is asked for was made and charged already; `whose` is charged. ConfigError if the task
    trains nothing, PrivacyError if the model cannot be private, the noise does not fit the ring, or the ledger would
    not pay.
    """
    if task.build is None or task.loss is None:
        raise ConfigError(f"task '{task.name}' trains nothing, so there is nothing to make private")
    if request.mechanism != "silo":
        if request.steps != 1:
            raise ProtocolError(f"{request.steps} steps a round; mechanism '{request.mechanism}' makes one release")
        noise_reserve(request, request.width, room)
    if request.candidates:
        scores_of(request, task.metrics)
    elif request.statistics:
        question_of(request, task.schema)
    elif reason := why_not_noised(task) if request.mechanism == "institution" else why_not_private(task):
        raise PrivacyError(reason)
    if ledger is not None:
        base_run = whole_run(request.run)
        grant = ledger.authorise(request.grant, plan_of(request), asked_in=base_run, whose=whose)
        if not paid:
            ledger.check(grant, _release(ledger, grant, request, NO_DIGEST), asked_in=base_run)


def _key(request: PrivateRequest, number: SumNumber) -> ReleaseKey:
    model = hashlib.sha256(request.model.tobytes()).digest()
    return number, request.run, request.grant, request.round, plan_of(request), model


def _release(ledger: PrivacyLedger, grant: Grant, request: PrivateRequest, digest: str) -> Release:
    """The next release of `grant`, which `request` asks for."""
    plan = grant.plan
    return Release(
        event=Event(plan.event.noise_multiplier, plan.event.sampling_rate, request.steps),
        round=request.round,
        attempt=ledger.next_attempt(grant, request.round),
        first_step=(request.round - 1) * request.steps,
        mechanism=request.mechanism,
        clip=request.clip,
        config=plan.config,
        digest=digest,
    )


def noise_reserve(request: PrivateRequest, size: int, room: int) -> tuple[int, int]:
    """The variance of this institution's noise, and the integers that it may take up.

    Raises PrivacyError if the noise does not fit the ring.
    """
    variance = share_variance(request.noise_multiplier, Units(request.clip, size, request.grid_bits), request.honest)
    return variance, reserved(variance, room)


def plan_of(request: PrivateRequest) -> Plan:
    """All that the run of `request` may release, as one person's ledger sees it.

    Under `institution` a person may move the update by 2C where leaving the institution out moves it by C, and all of
    the institution's persons take part in every round.
    """
    by_institution = request.mechanism == "institution"
    constants = {f.name: getattr(request, f.name) for f in fields(request) if f.name not in CONSTANTS}
    constants = {name: value for name, value in constants.items() if value or name not in (*SCORED, *LATER)}
    return Plan(
        event=Event(
            request.noise_multiplier / 2 if by_institution else request.noise_multiplier,
            1.0 if by_institution else request.sampling_rate,
            request.rounds * request.steps + request.spare,
        ),
        mechanism=request.mechanism,
        clip=request.clip,
        delta=request.delta,
        rounds=request.rounds,
        config=hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest(),
    )
