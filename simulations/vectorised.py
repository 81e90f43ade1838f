"""Many institutions' local training as one computation: their models stacked, their batches side by side.

Institution i's model is row i of a matrix, shape [institutions, d]. A step takes the next batch of every institution,
each in its own seeded order (`clients/training.py`), and moves all rows at once; an institution that has no batch left
has dropped out of the stack, for even a zero gradient would move it under FedProx. Batches of unequal length are padded
with records of weight 0. The result is that of `LocalTraining`, to the rounding of float32 sums.

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
from torch import Tensor, nn

from sovfed.clients.training import LocalTraining, order_seed
from sovfed.federation.errors import ConfigError, TrainingError
from sovfed.federation.messages import EvaluateRequest, PrivateRequest, ProfileRequest, SumRequest, Sums, TrainRequest
from sovfed.federation.tasks import Task
from sovfed.server.aggregation import Total, exact_sum
from sovfed.simulations.baselines import merge
from sovfed.simulations.population import KEPT, Institution

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.federation.config import Config
    from sovfed.federation.flower import StreamingGrid

CHUNK_BYTES: Final = 512 << 20  # main memory that one chunk of institutions may take
CHUNK_SHARE: Final = 0.25  # of free device memory, likewise
MODEL_COPIES: Final = 8  # float32 of d a model in the stack needs at its peak: model, gradient, update in float64, …
KEPT_OUTPUTS: Final = 3  # float32 of every layer's output: forward, backward, and in between


def refusal(module: nn.Module, config: Config) -> str:
    """Why local training of `module` cannot be stacked, or ""."""
    if config.privacy.private:
        return "private steps sample and clip each institution's persons for themselves"
    if config.client.precision != "float32":
        return f"client.precision is {config.client.precision}, and loss scales adapt to one institution's gradients"
    if config.strategy.individual:
        return f"strategy '{config.strategy.name}' needs every institution's own update, and stacking adds them up"
    if config.strategy.algorithm != "sgd":
        return f"strategy '{config.strategy.name}' changes local training, of which only plain SGD is stacked"
    for name, part in module.named_modules():
        if getattr(part, "track_running_stats", False):
            return f"{type(part).__name__} '{name}' keeps running statistics, which every institution has its own of"
        if (
            isinstance(rate := getattr(part, "p" if "Dropout" in type(part).__name__ else "dropout", 0.0), float)
            and rate
        ):
            return f"{type(part).__name__} '{name}' drops out at random, in an order that stacking would change"
    return ""


@dataclass(frozen=True)
class Batches:
    """The batches of a chunk's institutions, in descending order of their number.

    `rows` [institutions, steps, batch] are places in the table; `weights`, of the same shape, 1 / (records in the
    batch), and 0 for padding; `shares` [institutions, steps] are the batch's part of the last epoch, 0 before it;
    `active` and `widths` [steps] are the institutions that still have a batch, and the longest of these batches.
    """

    rows: Tensor
    weights: Tensor
    shares: Tensor
    active: list[int]
    widths: list[int]


@dataclass(frozen=True)
class Trained:
    """What a chunk of institutions (places in the cohort) learned: updates [c, d] and losses of the last epoch [c]."""

    places: list[int]
    updates: Tensor
    losses: Tensor


class Cohort:
    """Institutions whose records stand in one table: the sites, and each one's training and held-out rows."""

    def __init__(self, task: Task, institutions: Sequence[Institution], device: str) -> None:
        parts = [institution.load(task) for institution in institutions]
        union = merge(parts)
        self.sites = [institution.site for institution in institutions]
        self.train = np.split(union.train, np.cumsum([len(part.train) for part in parts])[:-1])
        self.test = np.split(union.test, np.cumsum([len(part.test) for part in parts])[:-1])
        self.engine = LocalTraining(task, union, site="", device=device)
        self.labels = torch.from_numpy(union.labels).to(self.engine.device)

    def choose(self, places: Sequence[int]) -> Cohort:
        """Those at `places`, on the same table."""
        chosen = copy(self)
        chosen.sites = [self.sites[place] for place in places]
        chosen.train = [self.train[place] for place in places]
        chosen.test = [self.test[place] for place in places]
        return chosen

    def profiles(self) -> list[Sums]:
        """Each institution's profile (`LocalTraining.profile`)."""
        features = [self.engine.records.features[rows].astype(np.float64) for rows in self.train]
        return [np.concatenate([[float(len(x))], x.sum(0), np.square(x).sum(0)]) for x in features]


class StackedTraining:
    """The local training of a task, for whole cohorts. Raises ConfigError with the reason if it cannot be stacked."""

    def __init__(self, task: Task, config: Config, chunk: int = 0) -> None:
        """`chunk` institutions are stacked at a time; 0: as many as memory is meant for."""
        if task.build is None or task.loss is None:
            raise ConfigError(f"task '{task.name}' has no model to train")
        self._task, self._loss, self._module, self._chunk = task, task.loss, task.build(), chunk
        if reason := refusal(self._module, config):
            raise ConfigError(f"simulation.engine=vectorised cannot train this: {reason}")
        self._shapes = {name: parameter.shape for name, parameter in self._module.named_parameters()}
        self._fitted = (0, 0), 0  # institutions that fit, by steps and batch size
        self.chunk = 0  # of the last round, told in the run's summary

    def train(self, request: TrainRequest, cohort: Cohort) -> Iterator[Trained]:
        """Train `request.model` at every institution of `cohort`; chunks come in descending order of steps."""
        features = cohort.engine.features(request.scale)
        places = sorted(range(len(cohort.sites)), key=lambda place: -_steps(len(cohort.train[place]), request))
        self._module.to(cohort.engine.device).train()
        longest = _steps(len(cohort.train[places[0]]), request)
        if self._fitted[0] != (longest, request.batch_size):
            self._fitted = (longest, request.batch_size), self._fitting(features, longest, request.batch_size)
        self.chunk = self._chunk or self._fitted[1]
        for start in range(0, len(places), self.chunk):
            mine = places[start : start + self.chunk]
            yield self._descend(request, cohort, features, mine)

    def _descend(self, request: TrainRequest, cohort: Cohort, features: Tensor, places: list[int]) -> Trained:
        """SGD as `LocalTraining`, w ← w − lr · (∇loss + mu · (w − start)), for all `places` at once."""
        batches, device = _batches(request, cohort, places), features.device
        start = torch.tensor(request.model, device=device)
        stacked = start.repeat(len(places), 1)
        total = torch.zeros(len(places), device=device)
        shares = batches.shares.to(device)
        for step, (active, width) in enumerate(zip(batches.active, batches.widths, strict=True)):
            rows, weights = (part[:active, step, :width].to(device) for part in (batches.rows, batches.weights))
            moving = stacked[:active]
            leaf = moving.detach().requires_grad_()
            outputs = torch.vmap(self._forward)(self._views(leaf), features[rows])
            losses = self._loss(outputs.flatten(0, 1).float(), cohort.labels[rows].flatten()).view(active, width)
            means = (losses * weights).sum(1)
            (gradient,) = torch.autograd.grad(means.sum(), leaf)
            if request.proximal_mu:
                gradient = gradient.add(moving - start, alpha=request.proximal_mu)
            moving.sub_(gradient, alpha=request.learning_rate)
            total[:active].addcmul_(means.detach(), shares[:active, step])
        return Trained(places, stacked.sub_(start), total)

    def _forward(self, parameters: dict[str, Tensor], features: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(self._module, parameters, (features,))
        return outputs

    def _views(self, stacked: Tensor) -> dict[str, Tensor]:
        """The model's parameters, each with one more dimension in front, as views of `stacked` [institutions, d]."""
        parts = torch.split(stacked, [shape.numel() for shape in self._shapes.values()], dim=1)
        return {
            name: part.view(len(stacked), *shape)
            for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)
        }

    @torch.no_grad()
    def _fitting(self, features: Tensor, steps: int, batch: int) -> int:
        """How many institutions fit into the memory that a chunk may take, at least one."""
        outputs = []
        hooks = [
            part.register_forward_hook(lambda _part, _given, found: outputs.append(found.numel()))
            for part in self._module.modules()
            if not list(part.children())
        ]
        self._module(features[:1].to(next(self._module.parameters()).device))
        for hook in hooks:
            hook.remove()
        kept = (features[0].numel() + KEPT_OUTPUTS * sum(outputs)) * batch
        each = 4 * (MODEL_COPIES * self._task.parameters + kept) + 12 * steps * batch
        room = float(CHUNK_BYTES)
        if features.device.type == "cuda":
            room = CHUNK_SHARE * torch.cuda.mem_get_info(features.device)[0]
        return max(1, int(room / each))


def _steps(count: int, request: TrainRequest) -> int:
    return request.local_epochs * -(-count // request.batch_size)


def _batches(request: TrainRequest, cohort: Cohort, places: list[int]) -> Batches:
    """The batches that `LocalTraining` would take, epoch after epoch in the institution's seeded order."""
    counts = np.array([len(cohort.train[place]) for place in places])
    size = min(request.batch_size, int(counts.max()))
    each = -(-counts // request.batch_size)  # batches of an epoch
    steps = each * request.local_epochs
    shape = (len(places), int(steps[0]), size)
    lengths = np.where(np.arange(shape[1]) < steps[:, None], size, 0)
    rows = np.zeros(shape, dtype=np.int64)
    for number, place in enumerate(places):
        mine, count, per_epoch = torch.from_numpy(cohort.train[place]), int(counts[number]), int(each[number])
        generator = torch.Generator().manual_seed(order_seed(request.seed, request.round, cohort.sites[place]))
        flat = rows[number].reshape(-1)
        for epoch in range(request.local_epochs):
            start = epoch * per_epoch
            flat[start * size : start * size + count] = mine[torch.randperm(count, generator=generator)].numpy()
            lengths[number, start + per_epoch - 1] = count - size * (per_epoch - 1)
    within = np.arange(size) < lengths[:, :, None]
    weights = np.divide(within, lengths[:, :, None], out=np.zeros(shape, np.float32), where=within, casting="unsafe")
    last = np.arange(shape[1]) >= (steps - each)[:, None]
    shares = (np.where(last, lengths, 0) / counts[:, None]).astype(np.float32)
    return Batches(
        torch.from_numpy(rows), torch.from_numpy(weights), torch.from_numpy(shares),
        (lengths > 0).sum(0).tolist(), lengths.max(0).tolist(),
    )  # fmt: skip


class VectorisedAggregation:
    """Answers the coordinator's requests itself: an `Aggregation` that trains the cohort, and sums in the clear."""

    def __init__(self, grid: StreamingGrid, task: Task, population: Sequence[Institution], config: Config) -> None:
        """Node k of `grid` is institution k − 1. Raises ConfigError with the reason if `task` cannot be stacked."""
        self._grid, self._task, self._population = grid, task, population
        self._device = config.client.device
        self._training = StackedTraining(task, config)
        self._everybody: Cohort | None = None

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        """As `Aggregation.collect`. Bytes are counted as if every institution had been sent to and had replied."""
        if isinstance(request, PrivateRequest):
            raise ConfigError("simulation.engine=vectorised takes no private step")
        start = time.monotonic()
        cohort, total = self._gather(nodes), Total(participants=list(nodes))
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
            return Total(refused=dict.fromkeys(nodes, TrainingError.code))
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
            (total.sums,) = self._evaluate(request, cohort, [np.concatenate(cohort.test)])
            self._train(request, cohort, nodes, total)
        else:
            total.by_node = dict(zip(nodes, self._evaluate(request, cohort, cohort.test), strict=True))
            total.sums = exact_sum(list(total.by_node.values()))

    def _gather(self, nodes: Sequence[int]) -> Cohort:
        """The cohort, on one table of everybody where there are few enough, else on one of its own."""
        if len(self._population) <= KEPT:
            if self._everybody is None:
                self._everybody = Cohort(self._task, self._population, self._device)
            return self._everybody.choose([node - 1 for node in nodes])
        return Cohort(self._task, [self._population[node - 1] for node in nodes], self._device)

    def _train(self, request: TrainRequest, cohort: Cohort, nodes: Sequence[int], total: Total) -> None:
        """Fill in the weighted mean and the loss; an institution whose update is not finite is left out."""
        summed = np.zeros(request.model.size, dtype=np.float64)
        for chunk in self._training.train(request, cohort):
            counts = np.array([len(cohort.train[place]) for place in chunk.places], dtype=np.float64)
            good = (chunk.updates.sum(1) + chunk.losses).isfinite().cpu().numpy()  # NaN and Inf survive every sum
            for place in np.flatnonzero(~good):
                total.refused[nodes[chunk.places[place]]] = TrainingError.code
            weights = np.where(good, counts, 0.0)
            updates = chunk.updates if good.all() else chunk.updates.nan_to_num(0.0, 0.0, 0.0)
            summed += torch.mv(updates.double().T, torch.from_numpy(weights).to(updates.device)).cpu().numpy()
            total.loss += float(chunk.losses.cpu().numpy()[good] @ weights[good])
            total.count += int(weights.sum())
        total.participants = [node for node in total.participants if node not in total.refused]
        if total.count:
            total.mean = (summed / total.count).astype(np.float32)

    def _evaluate(
        self, request: TrainRequest | EvaluateRequest, cohort: Cohort, parts: Sequence[Indices]
    ) -> list[Sums]:
        """The model's metric sums over each of `parts`, rows of the table. Raises TrainingError if not finite."""
        rows, loss = np.concatenate(parts), self._task.loss
        logits, labels = cohort.engine.logits(request.model, request.scale, rows), cohort.engine.records.labels[rows]
        if loss is None or not np.isfinite(logits).all():
            raise TrainingError(f"task '{self._task.name}': the model's outputs are not finite")
        losses = loss(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
        cuts = np.cumsum([len(part) for part in parts])[:-1]
        pieces = zip(*(np.split(values, cuts) for values in (logits, labels, losses)), strict=True)
        return [self._task.metrics.sums(*piece) for piece in pieces]

    def _count(self, institutions: int, down: int, up: int) -> None:
        self._grid.bytes_down += institutions * down
        self._grid.bytes_up += institutions * up
