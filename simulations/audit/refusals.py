"""Can an agency tell two data sets of one institution apart by what leaves it in the clear?

Each probe asks one institution for a sum, twice, with data sets that differ in what the probe aims at (a record whose
output overflows, one record more than W_max, none at all), under requests that are crafted to make that show and a
policy as lax as policies go. The institution is the shipped trainer with real keys, masking and checks; the other
members of its cohort only help to agree on keys, so no sum is opened. Compared is all that the agency gets: kind of
reply, code, sizes, and whether the seconds told are of the declared grid. Arrival times are not: docs/what-leaves.md
says what they tell.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from sovfed.clients.data import Records, table_of
from sovfed.clients.home.policy import Policy
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.admission import sums_width
from sovfed.clients.trainer.computing import Computing
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.masking import LEAST_TOLD_S, MOST_TOLD_S, Masking
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import TrainerService
from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.personal import MAX_PERSONAL, PersonalStates
from sovfed.federation.codec import vectors
from sovfed.federation.config import SecaggConfig
from sovfed.federation.errors import TrainingError
from sovfed.federation.messages import (
    EvaluateRequest,
    MaskedReply,
    PrivateReply,
    PrivateRequest,
    ProfileRequest,
    Refusal,
    Reply,
    Request,
    SecaggRequest,
    SumRequest,
    TrainRequest,
)
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.local import Authority
from sovfed.federation.secagg.terms import RECORD, Terms
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.simulations.grid import InMemoryGrid

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.federation.messages import EvaluateReply, ProfileReply, Sums, TrainReply, Vector
    from sovfed.federation.secagg.client import Permit
    from sovfed.federation.secagg.keys import Identity

MEMBERS: Final = 3
RECORDS: Final = 24  # of the institution that is attacked, half of them held out
LAX: Final = Policy(
    allowed_tasks=("breast_cancer", "digits", "digits_cnn"), require_privacy=False, max_model_value=1e30,
    least_spread=0.0, min_batch_size=1, max_learning_rate=1e3,
    secure_aggregation=Terms(min_cohort=MEMBERS, colluders=0, differencing=RECORD, least_max_weight=1, min_clip=0.0),
)  # fmt: skip
HUGE: Final = np.float32(9e29)  # 3.7e8 times it still is a float32, its square is not


@dataclass(frozen=True)
class Outcome:
    """What leaves one institution in the clear: the reply's kind, its code, the sizes of its vectors."""

    kind: str
    code: str
    sizes: tuple[tuple[str, int], ...]
    on_grid: bool


@dataclass(frozen=True)
class Probe:
    """A question and the two data sets that it should not tell apart; `refused`: the last request gets a code."""

    name: str
    requests: tuple[SumRequest, ...]
    one: Records
    other: Records
    max_weight: int = 10_000
    precision: str = "float32"
    refused: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of a probe: the last request's outcome under either data set, and whether any outcome differs."""

    probe: str
    one: str
    other: str
    masked: bool
    distinguishable: bool


class Refusing(TrainerService):
    """The control: a trainer that refuses, with a code, what fails on the records."""

    def __init__(self, *parts: Any, **others: Any) -> None:
        super().__init__(*parts, **others)
        self._computing = Failing(self._loaded, self._states, self._telling, lambda _request, _task, _sums: None)


class Failing(Computing):
    """The control's work."""

    def masked(
        self, request: ProfileRequest | TrainRequest | EvaluateRequest, task: Task, masking: Masking, permit: Permit
    ) -> Reply:
        workload = self._loaded.workload(task)
        reply, failed, _ = self._compute(request, task, workload, 0.0)
        if not isinstance(request, ProfileRequest) and isinstance(workload, LocalTraining):
            outputs = workload.logits(request.model, request.scale, workload.records.test)
            failed = failed or ("" if (np.abs(outputs) < 2.0**30).all() else "outputs")
        if failed:
            raise TrainingError("values are not finite")
        if isinstance(masking, Strict):
            masking.demand(reply)
        return super().masked(request, task, masking, permit)


class Strict(Masking):
    """The control's: a record count above the run's maximum is refused."""

    most = 10_000

    def demand(self, reply: ProfileReply | TrainReply | EvaluateReply) -> None:
        if getattr(reply, "count", 0) > self.most:
            raise TrainingError("more records than the maximum weight")
        for values in vectors(reply).values():
            if values.dtype == np.float64 and np.abs(values).max(initial=0.0) > 2.0**30:
                raise TrainingError("a sum is out of range")


class Member:
    """A member of the cohort. One without records agrees on keys and answers nothing else."""

    def __init__(self, trainer: TrainerService) -> None:
        self.trainer = trainer
        self.replies: list[Reply] = []
        self.silent = True

    def answer(self, request: Request) -> Reply:
        if self.silent and not isinstance(request, SecaggRequest):
            raise ConnectionError
        reply = self.trainer.answer(request)
        if not isinstance(request, SecaggRequest):
            self.replies.append(reply)
        return reply


def ask(probe: Probe, records: Records, trainer: type[TrainerService] = TrainerService) -> list[Outcome]:
    """What an institution with `records` answers to the probe's requests."""
    authority, members = Authority(), {}
    lost = logging.getLogger("sovfed.clients.node.app")
    with tempfile.TemporaryDirectory() as folder:
        for node in range(1, MEMBERS + 1):
            states = PersonalStates(Path(folder) / str(node), durable=False)
            service = trainer(
                RecordSource(lambda _task: records, "audit"), Runtime("cpu", probe.precision),
                Rules(LAX.check, least_spread=LAX.least_spread),
                masking=_masking(authority.institution(f"hospital-{node}"), probe, trainer), states=states,
            )  # fmt: skip
            members[node] = Member(service)
        members[1].silent = False
        grid = InMemoryGrid({node: make_client_app(member) for node, member in members.items()})
        aggregation = SecureAggregation(
            grid, authority.server("agency.test"), SecaggConfig(max_weight=probe.max_weight), run="audit",
            min_cohort=MEMBERS, deadline_s=60.0, max_size=2 * max(_size(request) for request in probe.requests),
            config_digest=bytes(32),
        )  # fmt: skip
        before, lost.disabled = lost.disabled, True
        try:
            for request in probe.requests:
                aggregation.collect(request, list(members), sums_width(request, get_task(request.task)))
        finally:
            lost.disabled = before
    return [_outcome(reply) for reply in members[1].replies]


def _masking(identity: Identity, probe: Probe, trainer: type[TrainerService]) -> Masking:
    store = MemoryStore()
    if trainer is TrainerService:
        return Masking(lambda: identity, lambda: store, LAX.secure_aggregation)
    strict = Strict(lambda: identity, lambda: store, LAX.secure_aggregation)
    strict.most = probe.max_weight
    return strict


def audit_refusals(probe: Probe, trainer: type[TrainerService] = TrainerService) -> Verdict:
    """Whether the probe's data sets can be told apart."""
    outcomes, other_outcomes = ask(probe, probe.one, trainer), ask(probe, probe.other, trainer)
    expected = {Refusal.__name__} if probe.refused else {MaskedReply.__name__, PrivateReply.__name__}
    masked = {outcomes[-1].kind, other_outcomes[-1].kind} <= expected
    differ = outcomes != other_outcomes or not all(outcome.on_grid for outcome in outcomes + other_outcomes)
    return Verdict(probe.name, _told(outcomes[-1]), _told(other_outcomes[-1]), masked, differ)


def _outcome(reply: Reply) -> Outcome:
    code = reply.reason if isinstance(reply, Refusal) else ""
    seconds = reply.seconds if isinstance(reply, MaskedReply) else LEAST_TOLD_S
    on_grid = LEAST_TOLD_S <= seconds <= MOST_TOLD_S and np.log2(seconds) % 1 == 0
    sizes = tuple((name, vector.size) for name, vector in sorted(vectors(reply).items()))
    return Outcome(type(reply).__name__, code, sizes, bool(on_grid))


def _told(outcome: Outcome) -> str:
    return outcome.code or " ".join([outcome.kind, *(f"{name}[{size}]" for name, size in outcome.sizes)])


def _size(request: SumRequest) -> int:
    return 1 if isinstance(request, ProfileRequest) else request.model.size


def made_up(task: Task, count: int = RECORDS, held_out: int = RECORDS // 2) -> Records:
    """Records within the task's bounds, the same at every call; nobody's."""
    random = np.random.default_rng(7)
    low, high = _bounds(task)
    total = count + held_out
    features = low + (high - low) * random.uniform(0.2, 0.4, (total, len(low)))
    rows = np.arange(total)
    columns = table_of(task.schema, features, rows % len(task.schema.classes))
    return Records(columns, rows, rows[:count], rows[count:])


def _bounds(task: Task) -> tuple[Sums, Sums]:
    """Least and greatest value of each number of a record, as stored, in the order of the scale: shape [f]."""
    low, high = np.concatenate([np.tile(column.bounds, (column.size, 1)) for column in task.transform.scaled]).T
    return low, high


def _with(records: Records, row: int, feature: int, value: float) -> Records:
    """`records` with another value of one of its numbers, as stored."""
    inputs = next(iter(records.columns))
    features = records.columns[inputs].copy()
    features[row, feature] = value
    return replace(records, columns={**records.columns, inputs: features})


def _labelled(records: Records, labels: Indices) -> Records:
    *_, target = records.columns
    return replace(records, columns={**records.columns, target: labels})


def _only(records: Records, train: int | None = None, test: int | None = None) -> Records:
    return replace(records, train=records.train[:train], test=records.test[:test])


def _cliff(task: Task) -> Vector:
    """A perceptron whose outputs are beyond float32 for records whose first pixel is above the middle of its range.

    For all others they are its last bias.
    """
    module = task.model()
    weight, bias, last, _ = module.parameters()
    with torch.no_grad():
        for parameter in (weight, bias, last):
            parameter.zero_()
        weight[0, 0], last[0, 0] = float(HUGE), float(HUGE)
    return task.layout.vector(module)


def probes() -> list[Probe]:
    """Every threshold that depends on records and that we know of."""
    task, cnn, digits = get_task("breast_cancer"), get_task("digits_cnn"), get_task("digits")
    records, images = made_up(task), made_up(cnn)
    high, brightest = float(_bounds(task)[1][0]), float(_bounds(digits)[1][0])
    held_out, trained = int(records.test[0]), int(records.train[0])
    scale = task.transform.public_scale
    tiny = np.concatenate([scale[:30], np.full(30, 1e-300)])
    zeros = np.zeros(task.parameters, np.float32)
    steep, edge = zeros.copy(), zeros.copy()
    steep[0] = HUGE
    edge[0] = 1.0
    profile = ProfileRequest(run="audit", task=task.name, digest=task.digest)
    lens = np.concatenate([np.full(30, -0.4), np.full(30, 1e-9)])  # in the midst of all but the greatest values
    evaluate = EvaluateRequest(run="audit", round=1, task=task.name, model=steep, scale=lens, digest=task.digest)
    calm = replace(evaluate, model=zeros, scale=scale)
    cliff = replace(
        evaluate, task=digits.name, model=_cliff(digits), scale=digits.transform.public_scale, digest=digits.digest
    )
    train = TrainRequest(
        run="audit", round=1, task=task.name, seed=1, local_epochs=2, batch_size=8, learning_rate=0.1, proximal_mu=0.0,
        model=zeros, scale=scale, keep="audit", digest=task.digest,
    )  # fmt: skip
    own = replace(
        train, task=cnn.name, model=np.full(cnn.parameters, 0.01, np.float32), scale=cnn.transform.public_scale,
        round=1, digest=cnn.digest,
    )  # fmt: skip
    private = PrivateRequest(
        run="audit", grant="audit", round=1, task=task.name, mechanism="distributed", rounds=10, steps=1, spare=0,
        noise_multiplier=1.0, sampling_rate=0.5, clip=1.0, delta=1e-5, honest=2, grid_bits=12, batch=12.0, seed=1,
        local_epochs=1, batch_size=8, learning_rate=0.1, model=zeros, digest=task.digest,
    )  # fmt: skip
    far = _with(records, held_out, 0, 1e30)
    hit = _with(records, trained, 0, 1e30)
    nan_in, nan_out = _with(records, trained, 3, np.nan), _with(records, held_out, 3, np.nan)
    classes = images.columns[cnn.schema.targets[0].name]
    bad_label = _labelled(images, np.where(np.arange(len(images)) == 2, 99, classes))
    one_class = _labelled(records, np.zeros(len(records), np.int64))
    several = replace(records, persons=np.where(records.persons == 1, 0, records.persons))
    all_probes = [
        Probe("an output that overflows for one record", (cliff,), images, _with(images, held_out, 0, brightest)),
        Probe("a scale that magnifies one record", (evaluate,), records, _with(records, held_out, 0, high)),
        Probe("a scale that divides by nothing", (replace(evaluate, scale=tiny),), records, far),
        Probe("a sum of losses above the header's bound", (replace(evaluate, model=edge, scale=scale),), records, far),
        Probe("a value that is no number, held out", (evaluate,), records, nan_out),
        Probe("a value that is no number, trained on", (train,), records, nan_in),
        Probe("a feature whose sum leaves the profile's words", (profile,), records, hit),
        Probe("a feature that is no number, profiled", (profile,), records, nan_in),
        Probe("an update that overflows for one record", (replace(train, learning_rate=1e3),), records, hit),
        Probe("a learning rate that diverges", (replace(train, learning_rate=1e3, proximal_mu=1e6),), records, hit),
        Probe("half precision that overflows", (train,), records, _with(records, trained, 0, 1e8), precision="fp16"),
        Probe("one record more than the maximum weight", (train,), records, made_up(task, RECORDS + 1), RECORDS),
        Probe("ten times as many records", (train,), records, made_up(task, 10 * RECORDS)),
        Probe("no training records", (train,), _only(records, train=1), _only(records, train=0)),
        Probe("no training records, profiled", (profile,), _only(records, train=1), _only(records, train=0)),
        Probe("no held-out records", (calm,), _only(records, test=1), _only(records, test=0)),
        Probe("no held-out records, trained", (train,), _only(records, test=1), _only(records, test=0)),
        Probe("one class only", (train,), records, one_class),
        Probe("a label that is no class", (own,), images, bad_label),
        Probe("a label that is no class, under SGD without BatchNorm",
              (replace(own, task=digits.name, model=np.zeros(digits.parameters, np.float32), digest=digits.digest),),
              images, bad_label),
        Probe("batches of one under BatchNorm", (replace(own, batch_size=1),), images, _only(images, train=1)),
    ]  # fmt: skip
    for algorithm in ("scaffold", "fednova", "ditto", "fedbn"):
        first = replace(own, algorithm=algorithm, learning_rate=1e2, personal_lambda=1e3 * (algorithm == "ditto"))
        if algorithm == "scaffold":
            first = replace(first, control=np.zeros_like(first.model))
        then = replace(first, round=2, model=first.model * np.float32(1.5))
        look = EvaluateRequest(
            run="audit", round=2, task=cnn.name, model=then.model, scale=then.scale, algorithm=algorithm, keep="audit",
            digest=cnn.digest,
        )  # fmt: skip
        wild = _with(images, 0, 5, 1e30)
        all_probes.append(Probe(f"{algorithm}: what is kept after a round that overflows", (first, then), images, wild))
        all_probes.append(Probe(f"{algorithm}: and is evaluated", (first, look), images, wild))
    crafted = replace(train, algorithm="ditto", learning_rate=1e3, personal_lambda=0.1)
    usual = replace(crafted, learning_rate=0.1)
    other_requests = [replace(usual, round=2 + index, keep=f"other-{index}") for index in range(MAX_PERSONAL)]
    name = "ditto: a place among the models kept, if training comes to one"
    all_probes.append(Probe(name, (crafted, *other_requests), records, hit, refused=True))
    for mechanism in ("distributed", "silo", "institution"):
        request = replace(private, mechanism=mechanism)
        for label, changed in (
            ("a value that is no number", nan_in), ("no records", _only(records, train=0)),
            ("a person with two records", several), ("a huge value", hit),
        ):  # fmt: skip
            all_probes.append(Probe(f"private, {mechanism}: {label}", (request,), records, changed))
    return all_probes
