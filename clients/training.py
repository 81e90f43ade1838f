"""Local training and evaluation: plain SGD with FedProx's term, on one institution's records, warm between rounds.

The model's parameters are views of one flat vector, so that loading a model is one copy and the update one subtraction.
Institutions of one process may share a model: nothing of it outlives a call.
"""

from __future__ import annotations

import dataclasses
import hashlib
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sovfed.clients.model import FlatModel, gradients
from sovfed.federation.errors import ConfigError, ProtocolError, TrainingError
from sovfed.federation.messages import TrainRequest
from sovfed.federation.secagg.ring import saturated
from sovfed.federation.tasks import public_scale

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sovfed.clients.data import Indices, Records
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.tasks import Task

STD_FLOOR: Final = 1e-6
LARGEST_OUTPUT: Final = 1e3  # of a model, and of the loss of one record, as they are measured
FP16_SCALE: Final = 2.0**10  # the first loss scale; it adapts from there
RESIDENT_SHARE: Final = 0.25  # of free device memory that the records may take up; else they are copied batch by batch
WARMING: Final = 64  # records
GATHERED: Final = 1 << 20  # bytes of an epoch's features that are put in order at once rather than batch by batch
SMALL: Final = 1 << 20  # parameters; a smaller model trains on one CPU thread, which is faster where cores are shared
PRECISIONS: Final = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str) -> torch.device:
    """The device called `wanted`; "auto" takes a CUDA or ROCm GPU, then Apple's, then the CPU.

    torch calls ROCm devices "cuda" (torch.version.hip is set). Raises ConfigError if the device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, present in there.items() if present))
    name = "cuda" if wanted == "rocm" else wanted
    if not there.get(name) or (wanted == "rocm" and torch.version.hip is None):
        raise ConfigError(f"device '{wanted}' is not there; present: {[name for name, here in there.items() if here]}")
    return torch.device(name)


class LocalTraining:
    """A task's model and one institution's records on a device. Not safe for use from several threads at once."""

    def __init__(
        self,
        task: Task,
        records: Records,
        *,
        site: str,
        device: str = "auto",
        precision: str = "float32",
        make_model: Callable[[Task, torch.device], FlatModel] = FlatModel,
        reproducible: bool = False,
    ) -> None:
        """`site` makes the order of this institution's records its own, and so does the sum that an update goes into.

        `reproducible` leaves the sum out of it. Raises ConfigError.
        """
        if task.loss is None:
            raise ConfigError(f"task '{task.name}' has no model to train")
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is '{precision}', expected one of {sorted(PRECISIONS)}")
        self.task, self.records, self.device, self.precision = task, records, choose_device(device), precision
        self._site, self._loss, self._reproducible = site, task.loss, reproducible
        self._model = make_model(task, self.device)
        self._shares: dict[int, Tensor] = {}
        self._scaled: tuple[Sums, Tensor] | None = None
        self._labels = self._place(torch.from_numpy(records.labels))

    @property
    def count(self) -> int:
        """Training records."""
        return len(self.records.train)

    @property
    def device_name(self) -> str:
        """The device, with the maker's name of a GPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def profile(self) -> Sums:
        """[n, Σx, Σx²] over the training records, shape [1 + 2f]."""
        features = self.records.features[self.records.train].astype(np.float64)
        return np.concatenate([[float(len(features))], features.sum(0), np.square(features).sum(0)])

    def warm_up(self) -> None:
        """Take one step and one evaluation, so that the first round waits for nothing that torch loads late."""
        everything = self.records
        train, test = everything.train[:WARMING], everything.test[:WARMING]
        self.records = dataclasses.replace(everything, train=train, test=test)
        scale = public_scale(self.task)
        model = np.zeros(self.task.parameters, dtype=np.float32)
        request = TrainRequest(
            run="warm-up", round=1, task=self.task.name, seed=0, local_epochs=1, batch_size=WARMING,
            learning_rate=1e-9, proximal_mu=0.0, model=model, scale=scale,
        )  # fmt: skip
        try:
            if len(train):
                self.train(request)
            self.evaluate(model, scale)
        finally:
            self.records = everything

    def steps(self, request: TrainRequest) -> int:
        """The gradient steps that `request` asks for."""
        return request.local_epochs * -(-self.count // request.batch_size)

    def only_trained(self, vector: Vector) -> Vector:
        """`vector` (shape [d]) with zeros at the places of buffers, which no gradient moves."""
        return np.concatenate([vector[: self._model.trained], np.zeros(vector.size - self._model.trained, np.float32)])

    def train(
        self, request: TrainRequest, *, correction: Vector | None = None, anchor: Vector | None = None
    ) -> tuple[Vector, float]:
        """The update (local − global, shape [d]) and the mean training loss of the last epoch.

        Minimises F(w) + mu/2 · |w − anchor|² (Li et al. 2020, arXiv:1812.06127, equation 2) by SGD without momentum;
        the anchor, shape [d], is the model received unless given. `correction`, shape [d], is added to each gradient.
        Deterministic on a CPU (with `SMALL` or more parameters: for a given number of threads). Raises TrainingError if
        a value is not finite or memory runs out.
        """
        if not self.count:
            raise TrainingError(f"round {request.round}: there are no training records")
        features = self.features(request.scale)
        sum_ = b"" if self._reproducible else request.begin.tobytes()  # no two sums have the same M1
        seed = order_seed(request.seed, request.round, self._site, sum_)
        cards = [self.device] if self.device.type == "cuda" else []
        try:
            with self.threads(), torch.random.fork_rng(devices=cards):
                # For models with dropout. Off CUDA, torch.manual_seed would format and keep a stack trace each time.
                (torch.manual_seed if cards else torch.default_generator.manual_seed)(seed)
                pull = self._make_pull(request, correction, anchor)
                return self._descend(request, features, torch.Generator().manual_seed(seed), pull)
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            if cards:
                torch.cuda.empty_cache()
            raise TrainingError(f"round {request.round}: out of memory on {self.device}") from error

    def evaluate(self, model: Vector, scale: Sums) -> Sums:
        """The task's metric sums of `model` (shape [d]) over the held-out records."""
        return self.measure(model, scale)[0]

    def measure(self, model: Vector, scale: Sums) -> tuple[Sums, bool]:
        """As `evaluate`, and whether an output had to be cut (`judged`)."""
        rows = self.records.test
        if not len(rows):
            return np.zeros(self.task.evaluation_size), False
        with self.threads():
            return judged(self.task, self.logits(model, scale, rows), self.records.labels[rows])

    def logits(self, model: Vector, scale: Sums, rows: Indices) -> npt.NDArray[np.float32]:
        """The model's float32 outputs for `rows`, shape [n, outputs]."""
        features = self.features(scale)
        self._model.load(model)
        self._model.mode(training=False)
        with self.threads(), torch.inference_mode(), self._autocast():
            parts = [
                self._model.module(self.take(features, index)).float().cpu()
                for index in torch.split(torch.from_numpy(rows), self.task.evaluation_batch)
            ]
        outputs: npt.NDArray[np.float32] = (torch.cat(parts) if len(parts) > 1 else parts[0]).numpy()
        return outputs

    def _descend(
        self, request: TrainRequest, features: Tensor, generator: torch.Generator, pull: Callable[[], Tensor | None]
    ) -> tuple[Vector, float]:
        self._model.load(request.model)
        self._model.mode(training=True)
        step = (self._scaled_step if self.precision == "fp16" else self._plain_step)(request.learning_rate, pull)
        rows = torch.from_numpy(self.records.train)
        for _ in range(request.local_epochs):
            order = rows[torch.randperm(len(rows), generator=generator)]
            losses = []
            for batch, labels in self._batches(features, order, request.batch_size):
                with self._autocast():
                    outputs = self._model.module(batch)
                each = self._loss(outputs.float(), labels)
                losses.append(each.detach())
                step(each)
        with np.errstate(over="ignore", invalid="ignore"):  # found out below
            update: Vector = self._model.flat.cpu().numpy() - request.model
        mean_loss = float(torch.cat(losses).mean())
        if not (np.isfinite(mean_loss) and np.isfinite(update).all()):
            raise TrainingError(f"round {request.round}: loss or update is not finite; is the learning rate too high?")
        return update, mean_loss

    def _batches(self, features: Tensor, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of the rows in `order`, `size` at a time; few records are gathered all at once."""
        if len(order) <= size:
            yield self.take(features, order), self.take(self._labels, order)
        elif features[0].nbytes * len(order) <= GATHERED:
            everything = self.take(features, order), self.take(self._labels, order)
            yield from zip(torch.split(everything[0], size), torch.split(everything[1], size), strict=True)
        else:
            for index in torch.split(order, size):
                yield self.take(features, index), self.take(self._labels, index)

    def _share(self, size: int) -> Tensor:
        """What each of `size` losses weighs in their mean."""
        found = self._shares.get(size)
        if found is None:
            found = self._shares[size] = torch.full((size,), 1.0, device=self.device) / size
        return found

    def _plain_step(self, learning_rate: float, pull: Callable[[], Tensor | None]) -> Callable[[Tensor], None]:
        """w ← w − lr · gradient of the losses' mean, without torch.optim, whose import of the compiler takes seconds.

        Gradients are taken as they come: accumulating them would be two more passes over the model.
        """
        parameters, values = tuple(self._model.parameters), self._model.values
        flat = self._model.flat[: self._model.trained]

        def step(losses: Tensor) -> None:
            found = gradients(losses, self._share(len(losses)), parameters)
            if (added := pull()) is not None:
                flat.sub_(added, alpha=learning_rate)
            for value, gradient in zip(values, found, strict=True):
                if gradient is not None:
                    value.sub_(gradient, alpha=learning_rate)

        return step

    def _scaled_step(self, learning_rate: float, pull: Callable[[], Tensor | None]) -> Callable[[Tensor], None]:
        """The same with a scaled loss, for fp16: a step whose gradient overflows is left out and the scale lowered."""
        weights = torch.nn.Parameter(self._model.flat[: self._model.trained])
        optimizer = torch.optim.SGD([weights], lr=learning_rate)
        scaler = torch.amp.GradScaler(self.device.type, init_scale=FP16_SCALE)

        def step(losses: Tensor) -> None:
            taken = torch.autograd.grad(
                scaler.scale(losses.mean()), self._model.parameters, allow_unused=True, materialize_grads=True
            )
            weights.grad = torch.cat([gradient.reshape(-1) for gradient in taken])
            scaler.unscale_(optimizer)
            if (added := pull()) is not None:
                weights.grad.add_(added)
            scaler.step(optimizer)
            scaler.update()

        return step

    def _make_pull(
        self, request: TrainRequest, correction: Vector | None, anchor: Vector | None
    ) -> Callable[[], Tensor | None]:
        """What is added to every gradient, mu · (w − anchor) + correction; None if that is nothing."""
        trained, mu = slice(self._model.trained), request.proximal_mu
        flat = self._model.flat[trained]
        towards = None if not mu else self._vector(request.model if anchor is None else anchor)[trained]
        added = None if correction is None else self._vector(correction)[trained]

        def pull() -> Tensor | None:
            if towards is None:
                return added
            drawn = (flat - towards).mul_(mu)
            return drawn if added is None else drawn.add_(added)

        return pull

    def _vector(self, values: Vector) -> Tensor:
        """`values` (shape [d]) on the device. Raises ProtocolError."""
        if values.shape != (self.task.parameters,):
            raise ProtocolError(
                f"vector of shape {values.shape}, task '{self.task.name}' has {self.task.parameters} parameters"
            )
        return torch.tensor(values, device=self.device)

    def features(self, scale: Sums) -> Tensor:
        """All features standardised with [mean (f), standard deviation (f)], kept until another scale comes."""
        width = self.records.features.shape[1]
        if scale.shape != (2 * width,):
            raise ProtocolError(f"scale of shape {scale.shape}, expected ({2 * width},)")
        if self._scaled is not None and (scale is self._scaled[0] or np.array_equal(scale, self._scaled[0])):
            return self._scaled[1]
        mean, std = scale[:width], np.maximum(scale[width:], STD_FLOOR)
        scaled = self._place(torch.from_numpy(((self.records.features - mean) / std).astype(np.float32)))
        self._scaled = (scale.copy() if scale.flags.writeable else scale, scaled)
        return scaled

    def _place(self, rows: Tensor) -> Tensor:
        """`rows` on the device if they fit there with room to spare, else in main memory."""
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            if rows.nbytes > RESIDENT_SHARE * free:
                return rows
        return rows.to(self.device)

    def take(self, rows: Tensor, index: Tensor) -> Tensor:
        """The rows of `index` on the device; from main memory through a pinned, asynchronous copy."""
        if rows.device.type == self.device.type:
            return rows[index.to(self.device, non_blocking=True)]
        return rows[index].pin_memory().to(self.device, non_blocking=True)

    def threads(self) -> AbstractContextManager[None]:
        """One CPU thread for a small model: the number depends on the task, so that results do not on the machine."""
        return nullcontext() if self.task.parameters >= SMALL else one_thread()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISIONS[self.precision])


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes on one CPU thread meanwhile."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def judged(task: Task, logits: npt.NDArray[np.float32], labels: Indices) -> tuple[Sums, bool]:
    """The task's metric sums of `logits` [n, outputs], and whether one of them had to be cut.

    Each record by itself: what is not a number counts as 0, and outputs and losses are cut to ±`LARGEST_OUTPUT`, which
    no sane model comes near. So a record moves a sum by a bounded amount, the records beside it not at all, and no
    model can make an evaluation fail.
    """
    if task.loss is None:
        raise ConfigError(f"task '{task.name}' has no model to evaluate")
    fitting = saturated(logits, LARGEST_OUTPUT)
    losses = task.loss(torch.from_numpy(fitting), torch.from_numpy(labels)).numpy()
    return task.metrics.sums(fitting, labels, saturated(losses, LARGEST_OUTPUT)), fitting is not logits


def order_seed(seed: int, round_number: int, site: str, sum_: bytes = b"") -> int:
    """The seed of an institution's order of records in a round, and in the sum that M1 opens: no node's id is in it."""
    digest = hashlib.sha256(f"sovfed/order/{seed}/{round_number}/{site}".encode() + sum_).digest()
    return int.from_bytes(digest[:8], "big") >> 1
