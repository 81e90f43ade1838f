"""The round loop: send the model to the cohort, take what its replies add up to, step the server optimizer.

Everything here is transport-free: it drives a `StreamingGrid` and cannot tell a simulation from a deployment, nor a
sum of replies from one that secure aggregation opened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from sovfed.federation.algorithms.server_half import stepped_by
from sovfed.federation.config import Config
from sovfed.federation.errors import CohortError, DeclinedError, NoRosterError, PrivacyError, SovfedError, TrainingError
from sovfed.federation.messages import (
    Bytes,
    EvaluateRequest,
    ProfileRequest,
    RunRequest,
    SumRequest,
    Sums,
    TrainRequest,
    Vector,
)
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.registry import configured_task
from sovfed.federation.wire.grids import StreamingGrid
from sovfed.server.rounds.aggregation import Aggregation, Total
from sovfed.server.rounds.agreement import Agreement, run_request
from sovfed.server.rounds.candidates import Candidate, read_candidates, scoring_request, with_candidate
from sovfed.server.rounds.patience import Standing
from sovfed.server.rounds.privacy import PrivacyPlan, vector_size
from sovfed.server.rounds.refusals import FINAL, listed, told
from sovfed.server.strategies import Combining, Controlling, ServerOptimizer

log = logging.getLogger(__name__)
MAX_ATTEMPTS: Final = 5  # of one round, before the run stops and waits for `sovfed run resume`
NOTHING: Final[Vector] = np.zeros(0, dtype=np.float32)


@dataclass
class Round:
    """What is told of a round. Seconds are wall-clock; `evaluation` sums belong to the model the round began with."""

    number: int
    participants: list[int] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)  # in any attempt, the last code of each
    late: list[int] = field(default_factory=list)  # who was waited for in vain, in any attempt
    left_out: Sequence[int] = ()  # who was not asked, since it was late before
    spoilt: int | None = None  # contributions with values that are not finite or out of range; only a sum tells
    ring_error: float | None = None  # share of the mean update that rounding in the ring is, about
    count: int = 0
    train_loss: float | None = None  # not told of a private round, nor are evaluation and compute
    evaluation: Sums | None = None
    scores: Vector | None = None  # noised sums of those of a candidate, in a private run
    seconds: float = 0.0
    seconds_compute: float | None = None  # the slowest institution's own
    seconds_aggregate: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    attempts: int = 1

    @property
    def overhead_seconds(self) -> float | None:
        """Round wall-clock less the slowest institution's compute: what the federation itself costs."""
        return None if self.seconds_compute is None else max(0.0, self.seconds - self.seconds_compute)


class Rounds:
    """The state of a run between rounds and the verbs that advance it."""

    def __init__(
        self, config: Config, run: str, grid: StreamingGrid, optimizer: ServerOptimizer, aggregation: Aggregation
    ) -> None:
        self.config, self.run, self.grid = config, run, grid
        self.optimizer, self.aggregation, self.task = optimizer, aggregation, configured_task(config.task)
        self.model: Vector = np.zeros(0, dtype=np.float32)
        self.scale: Sums = np.zeros(0, dtype=np.float64)
        self.plan: PrivacyPlan | None = None  # of a private run
        self.repeats = 0  # private sums beyond the planned
        self.name = run  # which a resumed run keeps; `run` is Flower's
        self.before: Callable[[Sequence[int], Collection[int]], None] | None = None  # with who refused last, each sum
        self._refused: Collection[int] = ()
        self._took_part: Sequence[int] = ()  # in the last sum
        self.earlier: frozenset[str] = frozenset()  # institutions of the last round before the run was taken up
        self.left_out: Sequence[int] = ()  # of those that were connected when the cohort was chosen last
        self.standing = Standing(grid.heard)
        self.agreement: Agreement | None = None
        self.withdrawn: Callable[[], Collection[str]] = tuple  # institutions that are asked no more
        self.candidates: Sequence[Candidate] = (
            read_candidates(config, self.task) if config.task.candidates else ()
        )  # to be scored, one a round; nothing is trained then
        self.said: Callable[[Mapping[int, bytes]], None] = lambda answers: None  # takes the words on the order
        self.order: Callable[[RunRequest], Bytes] | None = None  # what is shown of the run first; a simulation has none

    def cohort(self) -> Sequence[int]:
        """The nodes to ask now: those of `connected` that did not keep the last rounds waiting."""
        connected = self.connected()
        asked = self.standing.ready(connected, self.config.server.min_cohort)
        self.left_out = [] if asked is connected else sorted(set(connected) - set(asked))
        return asked

    def connected(self) -> Sequence[int]:
        """The nodes that are here now, in ascending order; waits up to `server.node_wait_s` for the minimum cohort."""
        least, patience = self.config.server.min_cohort, self.config.server.node_wait_s
        deadline = time.monotonic() + patience
        while True:
            node_ids = self.grid.get_node_ids()
            nodes: Sequence[int] = (
                node_ids if isinstance(node_ids, range) else sorted(node_ids)
            )  # a range of many would take long to sort
            if self.agreement is not None:
                nodes = self.agreement.willing(nodes)
            if len(nodes) >= least:
                return nodes
            if time.monotonic() > deadline:
                willing = " that would answer" if self.agreement else ""
                raise CohortError(
                    f"{len(nodes)} institutions{willing} are connected after {patience:g} s, "
                    f"server.min_cohort is {least}"
                )
            time.sleep(0.2)

    def profile(self) -> Sequence[int]:
        """Set `scale` from federated sums: mean and standard deviation of each column over all training records.

        Returns the nodes whose records are in them.

        Σu and Σu² are added over institutions, so no institution's own mean is used or kept.
        """
        task = self.config.task
        request = ProfileRequest(
            run=self.run, task=task.name, normalisation=task.normalisation, digest=self.task.digest
        )
        total, _ = self._collect("the columns' profile", request, self.task.transform.profile_size)
        self.scale = self.task.transform.scale(_required(total.sums))
        return total.participants

    def train(self, number: int) -> Round:
        """Run round `number`, retrying while too few institutions answer. Raises CohortError after MAX_ATTEMPTS."""
        start, down, up = time.monotonic(), self.grid.bytes_down, self.grid.bytes_up
        if self.candidates:
            total, story = self._score(number)
            update = np.zeros_like(self.model)
        elif self.plan is None:
            request = self._request(number, self.model, self._control())
            total, story = self._collect(f"round {number}", request, self.task.evaluation_size)
            update = _required(total.mean)
            if isinstance(self.optimizer, Combining):
                update = self.optimizer.combine(number, total, len(self.connected()))
            if self.task.build is not None:
                update = self.task.layout.received(update, self.model, request.units)
        else:
            total, story = self._collect(f"round {number}", self.plan.request(self.run, number, self.model), 0)
            update = self.plan.mean_update(total, number)
        clock = time.monotonic()
        self.model = stepped_by(self.optimizer, number, self.model, update)
        stepped = time.monotonic() - clock
        return Round(
            number=number,
            participants=total.participants,
            refused=self._refusing() | {node: code for node, code in story.refused if node not in total.participants},
            late=sorted(story.late),
            left_out=story.left_out,
            spoilt=total.spoilt,
            ring_error=total.ring_error,
            count=total.count,
            train_loss=None if self.plan or self.candidates else total.loss / total.count,
            evaluation=None if self.plan or not self.evaluates(number) else total.sums,
            scores=self.plan.mean_update(total) if self.plan and self.candidates else None,
            seconds=time.monotonic() - start,
            seconds_compute=None if self.plan else total.seconds_compute,
            seconds_aggregate=total.seconds_aggregate + stepped,
            bytes_down=self.grid.bytes_down - down,
            bytes_up=self.grid.bytes_up - up,
            attempts=story.attempts,
        )

    def _refusing(self) -> dict[int, str]:
        """Those that are here and are not asked, since they have said that they would refuse; with their codes."""
        if self.agreement is None or not self.agreement.beyond:
            return {}
        return self.agreement.refusals(set(self.grid.get_node_ids()))

    def _score(self, number: int) -> tuple[Total, _Story]:
        """The sums of candidate `number`, which is the model from now on: of its metrics, or noised ones of scores."""
        candidate = self.candidates[number - 1]
        self.model, self.scale = candidate.model, candidate.scale
        if self.plan is not None:
            private = with_candidate(self.plan.request(self.run, number, self.model), self.candidates, number)
            return self._collect(f"model {number}", private, 0)
        request = scoring_request(self.config, self.task, self.run, self.name, self.candidates)
        request = replace(request, round=number, model=self.model, scale=self.scale)
        return self._collect(f"model {number}", request, self.task.evaluation_size)

    def _request(self, number: int, model: Vector, control: Vector) -> TrainRequest:
        return replace(
            blank_request(self.config, self.task, self.run, self.name, number),
            model=model, control=control, scale=self.scale,
        )  # fmt: skip

    def agree(self) -> None:
        """Ask the institutions whether they would answer all of this run, and newcomers as they come.

        Raises DeclinedError, which names who would not and why, if too few would.
        """
        request = whole_run(self.config, self.task, self.run, self.name, self.plan)
        if self.order is not None:
            request = replace(request, order=self.order(request))
        least, order = self.config.server.min_cohort, self.config.order
        agreement = Agreement(self.grid, request, least, order.wait_s, order.cohort, self.withdrawn, self.said)
        agreement.require(self.connected)
        self.agreement = agreement

    def evaluates(self, number: int) -> bool:
        """Whether round `number` evaluates the model that it begins with."""
        return evaluates(self.config, number)

    def evaluate(self, number: int) -> Total:
        """The metric sums of the model after round `number`."""
        request = EvaluateRequest(
            run=self.run, round=number, task=self.config.task.name, model=self.model, scale=self.scale,
            algorithm=self.config.strategy.algorithm.local, keep=self.name,
            normalisation=self.config.task.normalisation,
            digest=self.task.digest,
        )  # fmt: skip
        return self._collect("the final evaluation", request, self.task.evaluation_size)[0]

    def _awaits_anybody(self, story: _Story) -> bool:
        """Whether one that took part before is away or silent; policies that refuse sums without it may change."""
        names, connected = self._names(), set(self.grid.get_node_ids())
        away = set(self._took_part) - connected or self.earlier - set(names.values())
        return bool(away or story.late or self.standing.resting(connected))

    def _names(self) -> dict[int, str]:
        return {node.node_id: node.name or str(node.node_id) for node in self.grid.get_nodes()}

    def _late(self, story: _Story) -> list[str]:
        """A sentence about those who did not answer, if there are any."""
        names = self._names()
        late = sorted(names.get(node, str(node)) for node in story.late)
        return [f"no answer in time from {listed(late)}"] if late else []

    def _judge(self, stage: str, total: Total, story: _Story) -> None:
        """Note who kept this attempt waiting, so that the next does not wait for them."""
        for node in {*total.participants, *total.refused} - {*total.late}:
            self.standing.answered(node)
        for node in total.late:
            self.standing.missed(node)
        if total.late:
            story.late.update(total.late)
            log.warning("%s: no answer in time from nodes %s; left out for now", stage, total.late)

    def _control(self) -> Vector:
        """What is sent beside the model."""
        variate = self.config.strategy.algorithm.variate
        return self.optimizer.control(self.model) if variate and isinstance(self.optimizer, Controlling) else NOTHING

    def _collect(self, stage: str, request: SumRequest, width: int) -> tuple[Total, _Story]:
        """The total over at least the minimum cohort, and what it took."""
        least, number, reasons, story = self.config.server.min_cohort, 0, dict[str, None](), _Story()
        for attempt in range(1, MAX_ATTEMPTS + 1):
            cohort, story.attempts = self.cohort(), attempt
            story.left_out = self.left_out
            if self.before:
                self.before(cohort, self._refused)
            try:
                total = self.aggregation.collect(request, cohort, width)
            except NoRosterError as error:
                if self._in_vain(error.refused, cohort, story):
                    raise DeclinedError(str(error)) from error
                raise
            self._refused = total.refused.keys()
            if self.agreement and (unsigned := [node for node, code in total.refused.items() if code == "order"]):
                self.agreement.hear(unsigned)  # for the officer's word, which a refusal does not carry
            story.refused += total.refused.items()
            self._judge(stage, total, story)
            if attempt > 1 and total.sum_number != number and self.plan is not None:
                self.repeats += 1
                log.warning("%s: repeated as another sum, charged anew: %d of the plan's spare", stage, self.repeats)
            number = total.sum_number
            if len(total.participants) >= least and total.sums is not None:
                self._took_part = total.participants
                if total.spoilt:
                    _tell_spoilt(stage, total)
                return total, story
            log.warning(
                "%s, attempt %d: %d replies, minimum cohort is %d; refused: %s %s",
                stage, attempt, len(total.participants), least, total.refused, total.missing,
            )  # fmt: skip
            reasons |= {total.missing: None} if total.missing else {}
            self._require_hope(stage, total, cohort, story)
        raise self._given_up(stage, total, cohort, [*reasons, *self._late(story)], story)

    def _require_hope(self, stage: str, total: Total, cohort: Sequence[int], story: _Story) -> None:
        """Raise DeclinedError if another attempt would come to the same, or is one that the plan does not pay for."""
        least, final = self.config.server.min_cohort, sum(code in FINAL for code in total.refused.values())
        if len(cohort) - final < least:
            raise DeclinedError(
                f"{stage}: {final} of {len(cohort)} institutions refuse, and would again; minimum cohort is "
                f"{least}; refusals: {told(story.refused, self._names())}"
            )
        if self.plan is not None and total.missing and self.repeats >= self.plan.repeats:
            raise DeclinedError(
                f"{stage}: {total.missing}; to repeat it is another release, and the {self.plan.repeats} repeats "
                "that privacy.spare_steps grants are used up"
            )

    def _given_up(
        self, stage: str, total: Total, cohort: Sequence[int], reasons: list[str], story: _Story
    ) -> SovfedError:
        """What ends the run after the last attempt: a DeclinedError if a run taken up by itself would be in vain."""
        least = self.config.server.min_cohort
        told_why = "; ".join([*reasons, f"refusals: {told(story.refused, self._names())}"])
        why = (
            f"{stage}: {len(total.participants)} replies in {MAX_ATTEMPTS} attempts, minimum cohort is {least}; "
            f"{told_why}"
        )
        vain = self._in_vain(total.refused, cohort, story)
        if self.plan is not None:  # it would charge the others
            unpaid = sum(code == PrivacyError.code for code in total.refused.values())
            vain |= len(cohort) - unpaid < least
        return DeclinedError(why) if vain else CohortError(why)

    def _in_vain(self, refused: Mapping[int, str], cohort: Sequence[int], story: _Story) -> bool:
        """Whether too few of `cohort` are left that their policies let answer, and nobody is awaited to change that."""
        spare = len(cohort) - self.config.server.min_cohort  # so many may refuse
        final, by_policy = (sum(code in codes for code in refused.values()) for codes in (FINAL, ("policy", *FINAL)))
        return final > spare or (by_policy > spare and not self._awaits_anybody(story))


def evaluates(config: Config, number: int) -> bool:
    """Whether round `number` evaluates the model that it begins with."""
    return (number - 1) % config.evaluate_every == 0


def blank_request(config: Config, task: Task, run: str, name: str, number: int) -> TrainRequest:
    """The request of round `number` without model, control and scale; `name` is the run's own, `run` Flower's."""
    strategy, (start_rate, end_rate) = config.strategy, config.local_rates(number)
    return TrainRequest(
        run=run, round=number, task=task.name, seed=config.seed, control=NOTHING, model=NOTHING,
        scale=np.zeros(0, dtype=np.float64), algorithm=strategy.algorithm.local, keep=name,
        normalisation=config.task.normalisation, digest=task.digest, evaluate=evaluates(config, number),
        rate_start=start_rate, rate_end=end_rate, keep_state=config.task.keep_state, **strategy.sent,
        **config.local_fields(),
    )  # fmt: skip


def whole_run(config: Config, task: Task, run: str, name: str, plan: PrivacyPlan | None) -> RunRequest:
    """All that the run asks for, `plan` of it if it is private."""
    rounds = config.rounds
    if config.task.candidates:
        candidates = read_candidates(config, task)
        if plan is not None:
            private = with_candidate(plan.request(run, rounds, NOTHING), candidates, rounds)
            return run_request(config, private, plan.parameters)
        return run_request(config, scoring_request(config, task, run, name, candidates), task.parameters)
    last = plan.request(run, rounds, NOTHING) if plan else blank_request(config, task, run, name, rounds)
    return run_request(config, last, vector_size(config, task))


@dataclass
class _Story:
    """What befell a collection until it came about."""

    attempts: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)  # of all: the last may only follow from those before
    late: set[int] = field(default_factory=set)
    left_out: Sequence[int] = ()


def _tell_spoilt(stage: str, total: Total) -> None:
    """Log how many contributions were spoilt. Raises TrainingError if all of them were: the model has diverged."""
    words = f"{stage}: {total.spoilt} of {len(total.participants)} contributions were spoilt"
    if total.spoilt == len(total.participants) and total.mean is not None:
        raise TrainingError(f"{words} (values not finite or out of range); is the learning rate too high?")
    log.warning("%s: their values were not finite or out of range, or their records could not be used", words)


def _required(value: np.ndarray | None) -> np.ndarray:
    if value is None:
        raise CohortError("no institution's reply could be added")
    return value
