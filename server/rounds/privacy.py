"""A private run at the coordinator: its noise multiplier, the requests of its rounds, and what a noised sum is worth.

Everything is fixed before the first round and made of the configuration alone, so a resumed run goes on with the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from sovfed.federation.config import Config, PrivacyConfig
from sovfed.federation.errors import CohortError, PrivacyError
from sovfed.federation.messages import PrivateRequest, Vector
from sovfed.federation.privacy.accounting import (
    CERTIFICATE,
    accountant_version,
    calibrate_noise_multiplier,
    epsilon,
)
from sovfed.federation.privacy.events import Event
from sovfed.federation.privacy.noise import Units, added_delta, distributed_event, reserved, share_variance
from sovfed.federation.privacy.statement import Statement, make_statement, promise
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.statistics.question import Question, read_question
from sovfed.federation.statistics.scores import Scores
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.registry import configured_task
from sovfed.server.rounds.aggregation import Total

log = logging.getLogger(__name__)
BESIDE: Final = 15  # standard deviations of an institution's noise, for which it leaves room in the ring
DEFAULT: Final = " (as by default: declare it if there are surely more)"
TIMID: Final = 0.5  # learning rates below it are those of runs without privacy
SLACK: Final = 1e-3  # share of δ that is kept for the samplers' distance


@dataclass(frozen=True)
class PrivacyPlan:
    """The private rounds of `config`, for a model of `parameters`; `grant` is the name in the institutions' ledgers."""

    config: Config
    grant: str
    parameters: int
    noise_multiplier: float

    @classmethod
    def make(cls, config: Config, grant: str, parameters: int) -> PrivacyPlan:
        """Calibrated to the target over all planned steps, or with the multiplier that is configured.

        Raises PrivacyError if no noise reaches the target, or the noise does not suit its grid or fit the ring.
        """
        privacy = config.privacy
        steps = config.rounds * _steps(config) + privacy.spare_steps
        factor = 2.0 if privacy.mechanism == "institution" else 1.0
        multiplier = privacy.noise_multiplier or factor * calibrate_noise_multiplier(
            privacy.epsilon, privacy.delta * (1 - SLACK), _rate(config), steps
        )
        plan = cls(config, grant, parameters, multiplier)
        if not math.isfinite(plan.epsilon):
            raise PrivacyError(
                f"noise multiplier {multiplier:g} over {steps} steps keeps no ε that can be told: it is in the "
                "hundreds or more; take fewer rounds or a larger privacy.noise_multiplier"
            )
        if plan.distance_delta > SLACK * privacy.delta:
            raise PrivacyError(f"the noise samplers' distance adds {plan.distance_delta:.2g} to δ = {privacy.delta:g}")
        plan._require_room()
        log.info(
            "privacy: %s, ε = %.3f at δ = %g over %d steps, noise multiplier %.4f",
            privacy.mechanism, plan.epsilon, privacy.delta, steps, multiplier,
        )  # fmt: skip
        return plan

    def _require_room(self) -> None:
        """Raise PrivacyError if the noise does not fit the ring: each institution would find so, and refuse."""
        secagg = self.config.secagg
        if self.config.privacy.mechanism == "silo" or not secagg.enabled:
            return
        ring = Ring(secagg.bits, secagg.clip, secagg.max_weight, self.config.server.min_cohort)
        reserved(share_variance(self.noise_multiplier, self.units, self.honest), ring.half - 2)

    @cached_property
    def honest(self) -> int:
        """h: the contributions whose noise is counted on."""
        if self.config.privacy.mechanism == "silo":
            return 1
        return self.config.server.min_cohort - self.config.privacy.colluders

    @cached_property
    def question(self) -> Question | None:
        """What is counted; None where a model is trained."""
        return asked_of(self.config)

    @cached_property
    def scores(self) -> Scores | None:
        """What is summed of models that are scored; None where there are none."""
        return Scores.of(configured_task(self.config.task).metrics) if self.config.task.candidates else None

    @property
    def counted(self) -> Question | Scores | None:
        """What the sums are of; None where a model is trained."""
        return self.scores if self.question is None else self.question

    @property
    def clip(self) -> float:
        """By how much one person may move a sum, in L2."""
        return self.config.privacy.clip if self.counted is None else self.counted.clip

    @property
    def units(self) -> Units:
        return Units(self.clip, self.parameters, self.config.privacy.grid_bits)

    def deviation(self, shares: int) -> float:
        """The standard deviation of the noise in each value of a sum that `shares` institutions added noise to."""
        variance = share_variance(self.noise_multiplier, self.units, self.honest)
        return math.sqrt(shares * variance) * 2.0**self.units.exponent

    def most_counted(self, institutions: int) -> int:
        """The largest count that the ring of a sum over `institutions` lets one of them tell beside its noise."""
        secagg = self.config.secagg
        ring = Ring(secagg.bits, secagg.clip, secagg.max_weight, institutions)
        return int(ring.half * 2.0**self.units.exponent - BESIDE * self.deviation(1))

    @cached_property
    def event(self) -> Event:
        """All planned steps, as one person's accountant sees them."""
        privacy, config = self.config.privacy, self.config
        factor = 2.0 if privacy.mechanism == "institution" else 1.0
        steps = config.rounds * _steps(config) + privacy.spare_steps
        return Event(self.noise_multiplier / factor, _rate(config), steps)

    @cached_property
    def epsilon(self) -> float:
        """ε of a person at the configured δ, if all planned steps are taken."""
        return epsilon([self.event], self.config.privacy.delta * (1 - SLACK), CERTIFICATE)

    @cached_property
    def distance_delta(self) -> float:
        """What the samplers' distance from their distributions adds to δ."""
        variance = share_variance(self.noise_multiplier, self.units, self.honest)
        _, distance = distributed_event(variance, self.honest, self.units, 1.0, self.event.count)
        return added_delta(min(self.config.privacy.epsilon, 100.0), distance)

    def request(self, run: str, number: int, model: Vector) -> PrivateRequest:
        """The request of round `number`; all but run, round and model is the same in every round."""
        config, privacy, task = self.config, self.config.privacy, self.config.task
        return PrivateRequest(
            run=run, grant=self.grant, round=number, task=task.name, mechanism=privacy.mechanism,
            rounds=config.rounds, steps=_steps(config), spare=privacy.spare_steps,
            noise_multiplier=self.noise_multiplier, sampling_rate=_rate(config), clip=self.clip,
            delta=privacy.delta, honest=self.honest, grid_bits=privacy.grid_bits, batch=self.batch, seed=config.seed,
            model=model, normalisation=task.normalisation, digest=configured_task(task).digest,
            person_records=privacy.person_records, statistics=task.statistics,
            scores=0 if self.scores is None else self.scores.size, **config.local_fields(),
        )  # fmt: skip

    @property
    def repeats(self) -> int:
        """Rounds that may be released once more: each is charged to the plan's spare steps."""
        return self.config.privacy.spare_steps // _steps(self.config)

    @cached_property
    def batch(self) -> float:
        """Expected persons in a step, from declared numbers: of the federation, or of each institution under `silo`."""
        everybody = self.config.privacy.sampling_rate * self.config.privacy.population
        return everybody / self.institutions if self.config.privacy.mechanism == "silo" else everybody

    @cached_property
    def _share(self) -> float:
        """How many times as long as the noise what is learnt can be.

        Of T steps the clipped gradients of b persons add up to a length of at most T·b·clip, if all point one way; the
        noise to one of about √(T·d)·z·clip in expectation. Whatever the learning rate, it scales both.
        """
        return math.sqrt(self._all_steps * self._noises / self.parameters) * self._each / self.noise_multiplier

    @property
    def _all_steps(self) -> int:
        return self.config.rounds * _steps(self.config)

    @property
    def _each(self) -> float:
        """How many speak in a step: persons, or institutions."""
        return float(self.institutions) if self.config.privacy.mechanism == "institution" else self.batch

    @property
    def _noises(self) -> int:
        """How many noises are averaged."""
        return self.institutions if self.config.privacy.mechanism == "silo" else 1

    @cached_property
    def expectation(self) -> str:
        """What to expect of the noise, and from how many persons on it no longer outweighs them, in one sentence."""
        privacy, whole = self.config.privacy, self.config.privacy.mechanism == "institution"
        noise = self.noise_multiplier * privacy.clip / (self._each * math.sqrt(self._noises))
        who = "institutions" if whole else "persons"
        there = self.institutions if whole else privacy.population
        default = not whole and privacy.population == PrivacyConfig().population
        many = f"{there} {who}" if whole else f"privacy.population = {there} {who}{DEFAULT * default}"
        return (
            f"what to expect at ε = {self.epsilon:.3g}: each step's mean, of length {privacy.clip:g} at most, has "
            f"noise of {noise:.2g} on each of {self.parameters} parameters; over {self._all_steps} steps what is "
            f"learnt is at most {self._share:.2g} times as long as the noise, with {many}; as long as it with "
            f"{math.ceil(there / self._share)}"
        )

    @cached_property
    def drowned(self) -> str:
        """Why hardly anything can be learnt, or ""."""
        if self.counted is not None or self._share >= 1:
            return ""
        who = "institutions" if self.config.privacy.mechanism == "institution" else "persons"
        return (
            f"hardly anything can be learnt: all that {self._each:.4g} {who} a step can say in {self._all_steps} "
            f"steps, even if they agreed, is {self._share:.1g} times as long as the noise (multiplier "
            f"{self.noise_multiplier:.3g}, {self.parameters} parameters): it takes more {who} (privacy.population, if "
            "there are more), a larger privacy.sampling_rate or privacy.epsilon, or a smaller model"
        )

    @cached_property
    def timid(self) -> str:
        """Why the model will hardly move, whatever the noise, or "": steps that are usual without privacy, of a mean
        whose clipped gradients mostly point apart."""
        rate: float = self.config.local_fields()["learning_rate"]
        if self.counted is not None or self.config.privacy.mechanism != "distributed" or rate >= TIMID:
            return ""
        way = rate * self.config.privacy.clip * sum(
            sum(self.config.local_rates(number)) / 2 for number in range(1, self.config.rounds + 1)
        )  # fmt: skip
        return (
            f"small steps: with a learning rate of {rate:g} all {self.config.rounds} rounds move the model by "
            f"{way:.2g} at most, and far less where persons differ; private runs usually take 1 to 4, as in "
            "task.learning_rate=2, at the same cost of privacy"
        )

    @property
    def institutions(self) -> int:
        return max(self.config.server.start_cohort, self.config.server.min_cohort)

    def mean_update(self, total: Total, number: int = 1) -> Vector:
        """The update that the noised sum of round `number` stands for, shape [d]. Post-processing: it costs no privacy.

        So the learning rate of `distributed`, which is taken here, may follow a schedule.
        """
        if self.config.privacy.mechanism == "silo":
            if total.mean is None:
                raise CohortError("no private update came")
            return total.mean
        if total.integers is None:
            raise CohortError("no private sum came")
        summed = self.units.dequantise(total.integers)
        if self.counted is not None:
            return summed.astype(np.float32)
        if self.config.privacy.mechanism == "institution":
            return (summed / total.count).astype(np.float32)
        rate: float = self.config.local_fields()["learning_rate"] * sum(self.config.local_rates(number)) / 2
        update: Vector = (-rate / self.batch * summed).astype(np.float32)
        return update

    def statement(self, run: str, model: str, institutions: Sequence[str], date: str) -> Statement:
        """What may be claimed of the trained model: that all granted steps were taken, at every institution."""
        privacy = self.config.privacy
        promises = [promise(name, (self.event,), privacy.delta, SLACK * privacy.delta) for name in institutions]
        return make_statement(
            model=model, run=run, date=date, mechanism=privacy.mechanism, clip=self.clip, cohort=len(institutions),
            threshold=self.honest, colluders=privacy.colluders if self.honest > 1 else 0, promises=tuple(promises),
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """What the run's summary says of it."""
        privacy = self.config.privacy
        return {
            "epsilon": self.epsilon,
            "delta": privacy.delta,
            "privacy": {
                "mechanism": privacy.mechanism, "unit": "person", "adjacency": "add or remove one",
                "noise_multiplier": self.noise_multiplier, "clip": self.clip,
                "sampling_rate": self.event.sampling_rate, "steps": self.event.count, "honest": self.honest,
                "accountant": accountant_version(),
            },
        }  # fmt: skip


def _steps(config: Config) -> int:
    """Private releases of an institution in a round."""
    return config.privacy.local_steps if config.privacy.mechanism == "silo" else 1


def _rate(config: Config) -> float:
    return 1.0 if config.privacy.mechanism == "institution" else config.privacy.sampling_rate


def asked_of(config: Config) -> Question | None:
    """What the run counts; None if it trains a model. Raises ConfigError if the task has no such column."""
    if not config.task.statistics:
        return None
    return read_question(config.task.statistics, configured_task(config.task).schema)


def vector_size(config: Config, task: Task) -> int:
    """Length of the vector that the run's sums are of: of the task's model, or of what is counted or scored."""
    if config.task.candidates and config.privacy.private:
        return Scores.of(task.metrics).size
    question = asked_of(config)
    return task.parameters if question is None else question.size
