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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sovfed.clients.training import LocalTraining, order_seed
from sovfed.federation.errors import ConfigError, TrainingError
from sovfed.federation.messages import EvaluateRequest, PrivateRequest, ProfileRequest, SumRequest, Sums, TrainRequest
from sovfed.federation.tasks import Task
from sovfed.server.aggregation import Total, exact_sum
from sovfed.simulations.baselines import merge
from sovfed.simulations.population import Institution

if TYPE_CHECKING:
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

    `rows` [institutions, steps, batch] are places in the features; `weights`, of the same shape, 1 / (records in the
    batch), and 0 for padding; `lengths` [institutions, steps]; `steps` [institutions].
    """

    rows: Tensor
    weights: Tensor
    lengths: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trained:
    """What a chunk of institutions (places in the cohort) learned: updates [c, d] and losses of the last epoch [c]."""

    places: list[int]
    updates: Tensor
    losses: Tensor


class Cohort:
    """The institutions of one exchange: all their records in one table."""

    def __init__(self, task: Task, institutions: Sequence[Institution], device: str) -> None:
        parts = [institution.load(task) for institution in institutions]
        union = merge(parts)
        self.sites = [institution.site for institution in institutions]
        self.train = np.split(union.train, np.cumsum([len(part.train) for part in parts])[:-1])
        self.test = [len(part.test) for part in parts]
        self.engine = LocalTraining(task, union, site="", device=device)
        self.labels = torch.from_numpy(union.labels).to(self.engine.device)

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
        self.chunk = 0  # of the last round, told in the run's summary

    def train(self, request: TrainRequest, cohort: Cohort) -> Iterator[Trained]:
        """Train `request.model` at every institution of `cohort`; chunks come in descending order of steps."""
        features = cohort.engine.features(request.scale)
        places = sorted(range(len(cohort.sites)), key=lambda place: -_steps(len(cohort.train[place]), request))
        self._module.to(cohort.engine.device).train()
        longest = _steps(len(cohort.train[places[0]]), request)
        self.chunk = self._chunk or self._fitting(features, longest, request.batch_size)
        for start in range(0, len(places), self.chunk):
            mine = places[start : start + self.chunk]
            with cohort.engine.threads():
                yield self._descend(request, cohort, features, mine)

    def _descend(self, request: TrainRequest, cohort: Cohort, features: Tensor, places: list[int]) -> Trained:
        """SGD as `LocalTraining`, w ← w − lr · (∇loss + mu · (w − start)), for all `places` at once."""
        batches = _batches(request, cohort, places)
        device = features.device
        start = torch.tensor(request.model, device=device)
        stacked = start.repeat(len(places), 1)
        counts = np.array([len(cohort.train[place]) for place in places])
        last = batches.steps - batches.steps // request.local_epochs  # the last epoch's first step
        total = torch.zeros(len(places), device=device)
        for step in range(int(batches.steps[0])):
            active = int((batches.steps > step).sum())
            width = int(batches.lengths[:active, step].max())
            rows = batches.rows[:active, step, :width].to(device)
            weights = batches.weights[:active, step, :width].to(device)
            views = self._views(stacked[:active])
            leaves = {name: view.detach().requires_grad_() for name, view in views.items()}
            outputs = torch.vmap(self._forward)(leaves, features[rows])
            losses = self._loss(outputs.flatten(0, 1).float(), cohort.labels[rows].flatten()).view(active, width)
            means = (losses * weights).sum(1)
            gradients = torch.autograd.grad(means.sum(), list(leaves.values()))
            with torch.no_grad():
                if request.proximal_mu:
                    pulled = (stacked[:active] - start).mul_(request.proximal_mu)
                    gradients = tuple(map(torch.add, gradients, self._views(pulled).values()))
                for view, gradient in zip(views.values(), gradients, strict=True):
                    view.sub_(gradient, alpha=request.learning_rate)
                share = np.where(last[:active] <= step, batches.lengths[:active, step] / counts[:active], 0.0)
                total[:active] += means.detach() * torch.from_numpy(share.astype(np.float32)).to(device)
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
    size = min(request.batch_size, max(len(cohort.train[place]) for place in places))
    steps = np.array([_steps(len(cohort.train[place]), request) for place in places])
    shape = (len(places), int(steps[0]), size)
    rows, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    lengths = np.zeros(shape[:2], dtype=np.int64)
    for number, place in enumerate(places):
        mine = cohort.train[place]
        generator = torch.Generator().manual_seed(order_seed(request.seed, request.round, cohort.sites[place]))
        each = int(steps[number]) // request.local_epochs
        length = np.full(each, min(size, request.batch_size))
        length[-1] = len(mine) - size * (each - 1)
        weight = np.repeat((1.0 / length).astype(np.float32), length)
        for epoch in range(request.local_epochs):
            part = slice(epoch * each, (epoch + 1) * each)
            order = torch.randperm(len(mine), generator=generator).numpy()
            rows[number, part].reshape(-1)[: len(mine)] = mine[order]
            weights[number, part].reshape(-1)[: len(mine)] = weight
            lengths[number, part] = length
    return Batches(torch.from_numpy(rows), torch.from_numpy(weights), lengths, steps)


class VectorisedAggregation:
    """Answers the coordinator's requests itself: an `Aggregation` that trains the cohort, and sums in the clear."""

    def __init__(self, grid: StreamingGrid, task: Task, population: Sequence[Institution], config: Config) -> None:
        """Node k of `grid` is institution k − 1. Raises ConfigError with the reason if `task` cannot be stacked."""
        self._grid, self._task, self._population = grid, task, population
        self._device = config.client.device
        self._training = StackedTraining(task, config)
        self._cohort: tuple[tuple[int, ...], Cohort] | None = None

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
        try:
            if isinstance(request, TrainRequest):
                total.sums = cohort.engine.evaluate(request.model, request.scale)
            else:
                total.by_node = dict(zip(nodes, self._evaluations(request, cohort), strict=True))
                total.sums = exact_sum(list(total.by_node.values()))
        except TrainingError:
            return Total(refused=dict.fromkeys(nodes, TrainingError.code))
        down = request.model.nbytes + request.scale.nbytes
        if isinstance(request, TrainRequest):
            self._train(request, cohort, nodes, total)
        self._count(len(nodes), down, 8 * width + (request.model.nbytes if isinstance(request, TrainRequest) else 0))
        total.seconds_compute = time.monotonic() - start
        return total

    def describe(self) -> dict[str, Any]:
        return {
            "secure_aggregation": False,
            "engine": "vectorised",
            "engine_chunk": self._training.chunk,
            "engine_details": "institutions stacked into one computation, summed in the clear",
        }

    def _gather(self, nodes: Sequence[int]) -> Cohort:
        key = tuple(nodes)
        if self._cohort is None or self._cohort[0] != key:
            self._cohort = key, Cohort(self._task, [self._population[node - 1] for node in nodes], self._device)
        return self._cohort[1]

    def _train(self, request: TrainRequest, cohort: Cohort, nodes: Sequence[int], total: Total) -> None:
        """Fill in the weighted mean and the loss; an institution whose update is not finite is left out."""
        summed = np.zeros(request.model.size, dtype=np.float64)
        for chunk in self._training.train(request, cohort):
            counts = np.array([len(cohort.train[place]) for place in chunk.places], dtype=np.float64)
            good = (chunk.updates.isfinite().all(1) & chunk.losses.isfinite()).cpu().numpy()
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

    def _evaluations(self, request: EvaluateRequest, cohort: Cohort) -> list[Sums]:
        """Each institution's own metric sums of the model."""
        records, loss = cohort.engine.records, self._task.loss
        logits = cohort.engine.logits(request.model, request.scale, records.test)
        labels = records.labels[records.test]
        if loss is None or not np.isfinite(logits).all():
            raise TrainingError(f"task '{self._task.name}': the model's outputs are not finite")
        losses = loss(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
        cuts = np.cumsum(cohort.test)[:-1]
        parts = zip(*(np.split(values, cuts) for values in (logits, labels, losses)), strict=True)
        return [self._task.metrics.sums(*part) for part in parts]

    def _count(self, institutions: int, down: int, up: int) -> None:
        self._grid.bytes_down += institutions * down
        self._grid.bytes_up += institutions * up
