"""Many institutions' local training as one computation: their models stacked, their batches side by side.

Institution i's model is row i of a matrix, shape [institutions, d]. A step takes the next batch of every institution,
each in its own seeded order (`clients/training/local.py`), and moves all rows at once; an institution that has no batch
left has dropped out of the stack, for even a zero gradient would move it under FedProx. Batches of unequal length are
padded with records of weight 0. The result is that of `LocalTraining`, to the rounding of float32 sums.

Updates are added up chunk by chunk and never leave it: nobody sees one, but there is no secure aggregation either.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from sovfed.clients.training.device import choose_device
from sovfed.clients.training.feed import Feed, profile_of
from sovfed.clients.training.judging import judged
from sovfed.clients.training.local import LocalTraining, order_seed
from sovfed.federation.errors import ConfigError, PrivacyError, TrainingError, wire_code
from sovfed.federation.messages import (
    EvaluateRequest,
    PrivateRequest,
    ProfileRequest,
    SumRequest,
    Sums,
    TrainRequest,
    local_work,
)
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.trees import mapped
from sovfed.server.rounds.aggregation import Total, exact_sum
from sovfed.simulations.baselines import merge
from sovfed.simulations.population import KEPT, Institution, Partitioned
from sovfed.simulations.stacked import CHUNK_BYTES, MODEL_COPIES, StackedModel, refusal
from sovfed.simulations.vectorised_private import Persons, StackedPrivate, clip_updates, mean_of, noised_sum

if TYPE_CHECKING:
    from sovfed.clients.data import Dataset, Indices
    from sovfed.clients.training.feed import Targets
    from sovfed.federation.config import Config
    from sovfed.federation.tasks.trees import Tree
    from sovfed.federation.wire.grids import StreamingGrid

TRIED: Final = 3  # made-up records that two copies are moved on


@dataclass(frozen=True)
class Batches:
    """The batches of a chunk's institutions, in descending order of their number.

    `rows` [steps, institutions, batch] are places in the table; `weights`, of the same shape, 1 / (records in the
    batch), and 0 for padding; `shares` 1 / (records of the institution) in its last epoch, else 0; `active` and
    `widths` [steps] are the institutions that still have a batch, and the longest of these batches; `steps`
    [institutions] each one's number of them.
    """

    rows: Tensor
    weights: Tensor
    shares: Tensor
    active: list[int]
    widths: list[int]
    steps: list[int]


@dataclass(frozen=True)
class Trained:
    """What a chunk of institutions (places in the cohort) learned: `parts` of updates, losses of the last epoch [c]."""

    places: list[int]
    parts: list[Tensor]  # [c, *shape] for each parameter
    losses: Tensor

    @property
    def updates(self) -> Tensor:
        """The updates [c, d]."""
        return torch.cat([tensor.reshape(len(tensor), -1) for tensor in self.parts], dim=1)

    def sum(self, weights: Tensor) -> Tensor:
        """Σ weightᵢ·updateᵢ, shape [d], given `weights` [c]."""
        return torch.cat([weights @ tensor.reshape(len(tensor), -1) for tensor in self.parts])


class Table:
    """Records on the device, of which institutions hold rows."""

    def __init__(self, task: Task, records: Dataset, device: str) -> None:
        self.engine = LocalTraining(task, records, site="", device=device)


class Cohort:
    """Institutions whose records stand in one table: the sites, and each one's training and held-out rows."""

    def __init__(self, table: Table, sites: list[str], train: list[Indices], test: list[Indices]) -> None:
        self.engine = table.engine
        self.sites, self.train, self.test = sites, train, test

    @classmethod
    def of(cls, task: Task, institutions: Sequence[Institution], device: str) -> Cohort:
        """`institutions`, on a table that is made for them."""
        parts = [institution.load(task) for institution in institutions]
        union = merge(parts)
        return cls(
            Table(task, union, device),
            [institution.site for institution in institutions],
            np.split(union.train, np.cumsum([len(records.train) for records in parts])[:-1]),
            np.split(union.test, np.cumsum([len(records.test) for records in parts])[:-1]),
        )

    def choose(self, places: Sequence[int]) -> Cohort:
        """Those at `places`, on the same table."""
        chosen = copy(self)
        chosen.sites = [self.sites[index] for index in places]
        chosen.train = [self.train[index] for index in places]
        chosen.test = [self.test[index] for index in places]
        return chosen

    def persons(self, chunk: int) -> Iterator[Persons]:
        """The persons of `chunk` institutions at a time, who hold their training records."""
        for start in range(0, len(self.train), chunk):
            yield Persons.of(self.train[start : start + chunk], self.engine.records.persons)

    def profiles(self) -> list[Sums]:
        """Each institution's profile (`LocalTraining.profile`)."""
        return [profile_of(self.engine.task, self.engine.records, rows) for rows in self.train]


class StackedTraining:
    """The local training of a task, for whole cohorts. Raises ConfigError with the reason if it cannot be stacked."""

    def __init__(self, task: Task, config: Config, chunk: int = 0) -> None:
        """`chunk` institutions are stacked at a time; 0: as many as memory is meant for."""
        if task.build is None or task.loss is None:
            raise ConfigError(f"task '{task.name}' has no model to train")
        module = task.model()
        self._chunk = chunk
        if reason := refusal(module, config):
            raise ConfigError(f"simulation.engine=vectorised cannot train this: {reason}")
        self._model = StackedModel(module, task.loss)
        if reason := _why_not(self._model, task):
            raise ConfigError(f"simulation.engine=vectorised cannot train this: {reason}")
        self._fitted = (0, 0), 0  # institutions that fit, by steps and batch size
        self.chunk = 0  # of the last round, told in the run's summary

    def train(self, request: TrainRequest, cohort: Cohort) -> Iterator[Trained]:
        """Train `request.model` at every institution of `cohort`; chunks come in descending order of steps."""
        feed = cohort.engine.feed(request.scale)
        places = sorted(range(len(cohort.sites)), key=lambda place: -request.plan.steps(len(cohort.train[place])))
        longest = request.plan.steps(len(cohort.train[places[0]]))
        batch = request.plan.step_size
        if self._fitted[0] != (longest, batch):
            record, _ = feed.take(torch.zeros(1, dtype=torch.int64))
            self._model.module.to(cohort.engine.device)
            self._fitted = (longest, batch), self._model.fitting(record, longest, batch)
        self.chunk = self._chunk or self._fitted[1]
        for start in range(0, len(places), self.chunk):
            yield self._descend(request, cohort, feed, places[start : start + self.chunk])

    def _descend(self, request: TrainRequest, cohort: Cohort, feed: Feed, places: list[int]) -> Trained:
        """SGD as `LocalTraining`, w ← w − lr · (∇loss + mu · (w − start)), for all `places` at once."""
        batches, device = _batches(request, cohort, places), cohort.engine.device
        rows = batches.rows.to(device)
        weights, shares = batches.weights.to(device), batches.shares.to(device)
        start = torch.tensor(request.model, device=device)
        origin, stacked = self._model.split(start), self._model.stack(start, len(places))
        total = torch.zeros(len(places), device=device)
        stepper = _Stepper(self._model, request, origin, stacked, batches)
        for step, (active, width) in enumerate(zip(batches.active, batches.widths, strict=True)):
            window = (step, slice(active), slice(width))
            inputs, targets = feed.take(rows[window])
            losses = stepper.take(step, active, inputs, targets, weights[window])
            total[:active] += torch.linalg.vecdot(losses, shares[window])
        return Trained(places, [tensor.sub_(before) for tensor, before in zip(stacked, origin, strict=True)], total)


def _why_not(model: StackedModel, task: Task) -> str:
    """Why two copies of the model cannot be moved on made-up records, ""  if they can."""
    if model.parameters != task.parameters:
        return "a buffer changes as it trains, which every institution has its own of"
    inputs, targets = (mapped(lambda part: part.expand(2, *part.shape), tree) for tree in task.made_up(TRIED))
    start = torch.from_numpy(task.layout.vector(model.module))
    try:
        with torch.random.fork_rng(devices=[]):
            model.gradients(model.stack(start, 2), inputs, targets, torch.full((2, TRIED), 1 / TRIED))
    except Exception as error:  # of torch, or the model's own
        return f"torch cannot stack its operations ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    return ""


class _Stepper:
    """The steps of a chunk: plain SGD where it is, else the optimizer that the request asks for."""

    def __init__(
        self, model: StackedModel, request: TrainRequest, origin: list[Tensor], stacked: list[Tensor], batches: Batches
    ) -> None:
        self._model, self._plan, self._origin, self._stacked = model, request.plan, origin, stacked
        self._constant = self._plan.learning_rate == self._plan.final_rate
        self._plain = self._plan.plain and self._constant
        if not self._plain:
            from sovfed.federation.optimizers import make

            self._optimizer = make(self._plan)
            self._state = self._optimizer.init(stacked, [tuple(tensor.shape) for tensor in origin])
        counts = batches.steps
        self._rates = [
            torch.tensor([self._plan.rate(step, total) for total in counts if total > step], device=origin[0].device)
            for step in range(0 if self._constant else len(batches.active))
        ]

    def take(self, step: int, active: int, inputs: Tree, targets: Tree, weights: Tensor) -> Tensor:
        """One step of the first `active` copies; the losses."""
        moving = [tensor[:active] for tensor in self._stacked]
        if self._plain:
            rate = self._plan.learning_rate
            return self._model.step(moving, inputs, targets, weights, rate, lambda: self._pull(moving, rate))
        losses, slopes = self._model.gradients(moving, inputs, targets, weights)
        if self._plan.proximal_mu:
            for slope, tensor, before in zip(slopes, moving, self._origin, strict=True):
                slope.add_(tensor - before, alpha=self._plan.proximal_mu)
        self._optimizer.step(
            moving, slopes, self._state, self._plan.learning_rate if self._constant else self._rates[step]
        )
        return losses

    def _pull(self, moving: list[Tensor], rate: float) -> None:
        if self._plan.proximal_mu:
            for tensor, before in zip(moving, self._origin, strict=True):
                tensor.sub_(tensor - before, alpha=rate * self._plan.proximal_mu)


def _batches(request: TrainRequest, cohort: Cohort, places: list[int]) -> Batches:
    """The batches that `LocalTraining` would take, epoch after epoch in the institution's seeded order.

    Those that it accumulates are one here: the mean over all their records.
    """
    plan = request.plan
    own_rows = [cohort.train[index] for index in places]
    counts = np.array([len(rows) for rows in own_rows])
    size = min(plan.step_size, int(counts.max()))
    each = -(-counts // plan.step_size)  # steps of an epoch
    steps = np.array([plan.steps(count) for count in counts.tolist()])
    passes = -(-steps // each)  # epochs, of which the last may break off
    shape = (int(steps[0]), len(places), size)
    orders, generator = [], torch.Generator()
    for index, count, epochs in zip(places, counts.tolist(), passes.tolist(), strict=True):
        generator.manual_seed(order_seed(request.seed, request.round, cohort.sites[index]))
        orders += [torch.randperm(count, generator=generator) for _ in range(epochs)]
    owner = np.repeat(np.arange(len(places)), counts * passes)
    sizes = np.repeat(counts, passes)  # records of each epoch of each institution
    place_in_epoch = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    number = np.repeat(np.concatenate([np.arange(epochs) for epochs in passes]), sizes)
    step, column = number * each[owner] + place_in_epoch // size, place_in_epoch % size
    within = step < steps[owner]
    first = (np.cumsum(counts) - counts)[owner]
    chosen = np.concatenate(own_rows)[first + torch.cat(orders).numpy()]
    step, column, owner, number, chosen = step[within], column[within], owner[within], number[within], chosen[within]
    rows, weights, shares = np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    rows[step, owner, column] = chosen
    lengths = np.zeros(shape[:2], np.int64)
    np.add.at(lengths, (step, owner), 1)
    weights[step, owner, column] = 1 / lengths[step, owner]
    last = number == passes[owner] - 1
    shares[step, owner, column] = last / np.bincount(owner[last], minlength=len(places))[owner]
    return Batches(
        torch.from_numpy(rows), torch.from_numpy(weights), torch.from_numpy(shares),
        (lengths > 0).sum(1).tolist(), lengths.max(1).tolist(), steps.tolist(),
    )  # fmt: skip


class VectorisedAggregation:
    """Answers the coordinator's requests itself: an `Aggregation` that trains the cohort, and sums in the clear."""

    def __init__(self, grid: StreamingGrid, task: Task, population: Sequence[Institution], config: Config) -> None:
        """Node k of `grid` is institution k − 1. Raises ConfigError with the reason if `task` cannot be stacked."""
        self._grid, self._task, self._population = grid, task, population
        self._device = config.client.device
        self._training = StackedTraining(task, config)
        self._private = None
        if config.privacy.private:
            try:
                self._private = StackedPrivate(task, config.privacy.clip, choose_device(self._device))
            except PrivacyError as error:
                raise ConfigError(f"simulation.engine=vectorised cannot train this: {error}") from error
        self._table: Table | None = None
        self._everybody: Cohort | None = None

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`. Bytes are counted as if each had been sent the whole model and had replied."""
        start = time.monotonic()
        cohort, total = self._gather(nodes), Total(participants=list(nodes))
        if isinstance(request, PrivateRequest):
            with cohort.engine.threads():
                self._answer_privately(request, cohort, nodes, total)
            self._count(len(nodes), request.model.nbytes, request.model.nbytes)
            total.seconds_compute = time.monotonic() - start
            return total
        if isinstance(request, ProfileRequest):
            total.by_node = dict(zip(nodes, cohort.profiles(), strict=True))
            total.sums = exact_sum(list(total.by_node.values()))
            self._count(len(nodes), 0, 8 * width)
            return total
        training, down = isinstance(request, TrainRequest), request.model.nbytes + request.scale.nbytes
        try:
            with cohort.engine.threads():
                self._answer(request, cohort, nodes, total)
        except TrainingError:
            return Total(refused=dict.fromkeys(nodes, wire_code(TrainingError())))
        self._count(len(nodes), down, 8 * width + (request.model.nbytes if training else 0))
        total.seconds_compute = time.monotonic() - start
        return total

    def describe(self) -> dict[str, Any]:
        return {
            "secure_aggregation": False,
            "engine": "vectorised",
            "engine_chunk": self._training.chunk,
            "engine_details": "institutions stacked into one computation, summed in the clear",
        }

    def _answer(
        self, request: TrainRequest | EvaluateRequest, cohort: Cohort, nodes: Sequence[int], total: Total
    ) -> None:
        """Fill in `total`; an evaluation before training is of all held-out records at once."""
        if isinstance(request, TrainRequest):
            total.sums = np.zeros(self._task.evaluation_size)
            if request.evaluate:
                (total.sums,) = self._evaluate(request, cohort, [np.concatenate(cohort.test)])
            self._train(request, cohort, nodes, total)
        else:
            total.by_node = dict(zip(nodes, self._evaluate(request, cohort, cohort.test), strict=True))
            total.sums = exact_sum(list(total.by_node.values()))

    def _answer_privately(self, request: PrivateRequest, cohort: Cohort, nodes: Sequence[int], total: Total) -> None:
        """Fill in `total`: the mean update under `silo`, else the sum in units with everybody's noise."""
        if self._private is None:
            raise ConfigError("a private request in a run that is not private")
        total.sums, scale = np.zeros(0), self._task.transform.public_scale
        if request.mechanism == "institution":
            training = TrainRequest(
                run=request.run, round=request.round, task=request.task, seed=request.seed,
                local_epochs=request.local_epochs, batch_size=request.batch_size,
                learning_rate=request.learning_rate, proximal_mu=0.0, model=request.model, scale=scale,
                **local_work(request),
            )  # fmt: skip
            rows = []
            for chunk in self._training.train(training, cohort):
                clipped, good = clip_updates(chunk.updates, request.clip)
                self._refuse(chunk, good, nodes, total)
                rows.append(clipped[good].cpu().numpy())
            total.integers = noised_sum(np.concatenate(rows), request, sum(map(len, rows)))
        else:
            feed = cohort.engine.feed(scale)
            if request.mechanism == "silo":
                self._training.chunk = max(1, CHUNK_BYTES // (8 * MODEL_COPIES * request.model.size))
                updates = [
                    self._private.descend(request, feed, persons) for persons in cohort.persons(self._training.chunk)
                ]
                total.mean = mean_of(torch.cat(updates))
            else:
                (everybody,) = cohort.persons(len(cohort.sites))
                total.integers = self._private.sample(request, feed, everybody)
        total.participants = [node for node in total.participants if node not in total.refused]
        total.count = len(total.participants)

    def _refuse(self, chunk: Trained, good: Tensor, nodes: Sequence[int], total: Total) -> None:
        for index in (~good).nonzero().flatten().tolist():
            total.refused[nodes[chunk.places[index]]] = wire_code(TrainingError())

    def _gather(self, nodes: Sequence[int]) -> Cohort:
        """The cohort: rows of the table that was cut up, if its records were not changed; else of everybody's table
        where there are few enough, else of one of its own.
        """
        places, population = [node - 1 for node in nodes], self._population
        if isinstance(population, Partitioned) and population.table is not None:
            if self._table is None:
                self._table = Table(self._task, population.table, self._device)
            rows = [population.rows(index) for index in places]
            sites = [population[index].site for index in places]
            return Cohort(self._table, sites, [train for train, _ in rows], [test for _, test in rows])
        if len(population) <= KEPT:
            if self._everybody is None:
                self._everybody = Cohort.of(self._task, population, self._device)
            return self._everybody.choose(places)
        return Cohort.of(self._task, [population[index] for index in places], self._device)

    def _train(self, request: TrainRequest, cohort: Cohort, nodes: Sequence[int], total: Total) -> None:
        """Fill in the weighted mean and the loss; an institution whose update is not finite is left out."""
        summed = np.zeros(request.model.size, dtype=np.float64)
        for chunk in self._training.train(request, cohort):
            weights = torch.tensor([float(len(cohort.train[index])) for index in chunk.places])
            weights = weights.to(chunk.losses.device)
            added, loss = chunk.sum(weights), weights @ chunk.losses
            if not (added.sum() + loss).isfinite():  # NaN and Inf survive every sum
                good = (chunk.updates.sum(1) + chunk.losses).isfinite()
                self._refuse(chunk, good, nodes, total)
                weights, losses = weights * good, chunk.losses.nan_to_num(0.0, 0.0, 0.0)
                added = weights @ chunk.updates.nan_to_num(0.0, 0.0, 0.0)
                loss = weights @ losses
            summed += added.cpu().numpy()
            total.loss += float(loss)
            total.count += int(weights.sum(dtype=torch.float64))
        total.participants = [node for node in total.participants if node not in total.refused]
        if total.count:
            mean = (summed / total.count).astype(np.float32)
            total.mean = self._task.layout.sent(mean, request.model, request.units) if request.units else mean

    def _evaluate(
        self, request: TrainRequest | EvaluateRequest, cohort: Cohort, parts: Sequence[Indices]
    ) -> list[Sums]:
        """The model's metric sums over each of `parts`, rows of the table."""
        batches = list(cohort.engine.outputs(request.model, request.scale, np.concatenate(parts)))
        outputs = np.concatenate([outputs for outputs, _ in batches])
        targets = _joined([targets for _, targets in batches])
        ends = np.cumsum([len(rows) for rows in parts])
        slices = [slice(end - len(rows), end) for rows, end in zip(parts, ends, strict=True)]
        return [judged(self._task, outputs[span], _cut(targets, span))[0] for span in slices]

    def _count(self, institutions: int, down: int, up: int) -> None:
        self._grid.bytes_down += institutions * down
        self._grid.bytes_up += institutions * up


def _joined(parts: Sequence[Targets]) -> Targets:
    by_name = [output for output in parts if isinstance(output, dict)]
    if by_name:
        return {name: np.concatenate([output[name] for output in by_name]) for name in by_name[0]}
    return np.concatenate([output for output in parts if not isinstance(output, dict)])


def _cut(targets: Targets, part: slice) -> Targets:
    return {name: values[part] for name, values in targets.items()} if isinstance(targets, dict) else targets[part]
