"""Local training and evaluation on one institution's records, warm between rounds.

The model's parameters are views of one flat vector, so that loading a model is one copy and the update one subtraction.
Institutions of one process may share a model: nothing of it outlives a call.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sovfed.clients.training.feed import Feed, Targets, arrays_of, batches_of, profile_of, tensors_of, together
from sovfed.clients.training.model import FlatModel
from sovfed.clients.training.progress import PROGRESS
from sovfed.clients.training.steps import make_stepper
from sovfed.federation.errors import ConfigError, ProtocolError, TrainingError
from sovfed.federation.messages import TrainRequest
from sovfed.federation.secagg.ring import saturated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sovfed.clients.data import Dataset, Indices
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.plan import LocalPlan
    from sovfed.federation.tasks import Task

LARGEST_OUTPUT: Final = 1e3  # of a model, and of the loss of one record, as they are measured
WARMING: Final = 64  # records
SMALL: Final = 1 << 20  # parameters; a smaller model trains on one CPU thread, which is faster where cores are shared
PRECISIONS: Final = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(wanted: str) -> torch.device:
    """The device called `wanted`; "auto" takes a CUDA or ROCm GPU, then Apple's, then the CPU.

    torch calls ROCm devices "cuda" (torch.version.hip is set). Raises ConfigError if the device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, present in available.items() if present))
    name = "cuda" if wanted == "rocm" else wanted
    if not available.get(name) or (wanted == "rocm" and torch.version.hip is None):
        raise ConfigError(
            f"device '{wanted}' is not there; present: {[name for name, usable in available.items() if usable]}"
        )
    return torch.device(name)


class LocalTraining:
    """A task's model and one institution's records on a device. Not safe for use from several threads at once."""

    def __init__(
        self,
        task: Task,
        records: Dataset,
        *,
        site: str,
        device: str = "auto",
        precision: str = "float32",
        make_model: Callable[[Task, torch.device], FlatModel] = FlatModel,
        reproducible: bool = False,
        most_epochs: int | None = None,
    ) -> None:
        """`site` makes the order of this institution's records its own, and so does the sum that an update goes into.

        `reproducible` leaves the sum out of it. A round passes over the records `most_epochs` times at most, however
        many steps are asked for: to refuse would tell how many records there are. Raises ConfigError.
        """
        if task.loss is None:
            raise ConfigError(f"task '{task.name}' has no model to train")
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is '{precision}', expected one of {sorted(PRECISIONS)}")
        self.task, self.records, self.device, self.precision = task, records, choose_device(device), precision
        self._site, self._loss, self._reproducible, self._most_epochs = site, task.loss, reproducible, most_epochs
        self._model = make_model(task, self.device)
        self._feed: Feed | None = None
        self._train, self._test = records.train, records.test

    @property
    def count(self) -> int:
        """Training records."""
        return len(self._train)

    @property
    def device_name(self) -> str:
        """The device, with the maker's name of a GPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def profile(self) -> Sums:
        """`Transform.profile` of the training records."""
        return profile_of(self.task, self.records, self._train)

    def warm_up(self) -> None:
        """Take one step and one evaluation, so that the first round waits for nothing that torch loads late."""
        everything = self._train, self._test
        self._train, self._test = self._train[:WARMING], self._test[:WARMING]
        scale = self.task.transform.public_scale
        model = np.zeros(self.task.parameters, dtype=np.float32)
        request = TrainRequest(
            run="warm-up", round=1, task=self.task.name, seed=0, local_epochs=1, batch_size=WARMING,
            learning_rate=1e-9, proximal_mu=0.0, model=model, scale=scale,
        )  # fmt: skip
        try:
            if len(self._train):
                self.train(request)
            self.evaluate(model, scale)
        finally:
            self._train, self._test = everything

    def steps(self, request: TrainRequest) -> int:
        """The gradient steps of `request`'s round here."""
        plan = request.plan
        if not self.count:
            return 0
        each = self._steps_an_epoch(plan)
        requested = plan.local_steps or plan.local_epochs * each
        return requested if self._most_epochs is None else min(requested, self._most_epochs * each)

    def _steps_an_epoch(self, plan: LocalPlan) -> int:
        batches = batches_of(self.count, plan.batch_size, coupled=self.task.layout.coupled)
        return -(-batches // plan.accumulation)

    def only_trained(self, vector: Vector) -> Vector:
        """`vector` (shape [d]) with zeros at the places of buffers, which no gradient moves."""
        return np.concatenate([vector[: self._model.trained], np.zeros(vector.size - self._model.trained, np.float32)])

    def train(
        self, request: TrainRequest, *, correction: Vector | None = None, anchor: Vector | None = None
    ) -> tuple[Vector, float]:
        """The update (local − global, shape [d]) and the mean training loss of the last epoch.

        Minimises F(w) + mu/2 · |w − anchor|² (Li et al. 2020, arXiv:1812.06127, equation 2) by the request's plan;
        the anchor, shape [d], is the model received unless given. `correction`, shape [d], is added to each gradient.
        Deterministic on a CPU (with `SMALL` or more parameters: for a given number of threads). Raises TrainingError if
        a value is not finite or memory runs out.
        """
        if not self.count:
            raise TrainingError(f"round {request.round}: there are no training records")
        feed = self.feed(request.scale)
        sum_ = b"" if self._reproducible else request.begin.tobytes()  # no two sums have the same M1
        seed = order_seed(request.seed, request.round, self._site, sum_)
        cards = [self.device] if self.device.type == "cuda" else []
        try:
            with self.threads(), torch.random.fork_rng(devices=cards):
                # For models with dropout. Off CUDA, torch.manual_seed would format and keep a stack trace each time.
                (torch.manual_seed if cards else torch.default_generator.manual_seed)(seed)
                pull = self._make_pull(request, correction, anchor)
                return self._descend(request, feed, torch.Generator().manual_seed(seed), pull)
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            if cards:
                torch.cuda.empty_cache()
            raise TrainingError(f"round {request.round}: out of memory on {self.device}") from error

    def evaluate(self, model: Vector, scale: Sums) -> Sums:
        """The task's metric sums of `model` (shape [d]) over the held-out records."""
        return self.measure(model, scale)[0]

    def measure(self, model: Vector, scale: Sums) -> tuple[Sums, bool]:
        """As `evaluate`, and whether an output had to be cut (`judged`)."""
        total, cut = np.zeros(self.task.evaluation_size), False
        for outputs, targets in self.outputs(model, scale, self._test):
            sums, one_cut = judged(self.task, outputs, targets)
            total, cut = total + sums, cut or one_cut
        return total, cut

    def logits(self, model: Vector, scale: Sums, rows: Indices) -> npt.NDArray[np.float32]:
        """The model's float32 outputs for `rows`, shape [n, …]."""
        return np.concatenate([outputs for outputs, _ in self.outputs(model, scale, rows)])

    def outputs(self, model: Vector, scale: Sums, rows: Indices) -> Iterator[tuple[npt.NDArray[np.float32], Targets]]:
        """The model's float32 outputs [n, …] for `rows`, and their targets, at most `evaluation_batch` at a time."""
        feed = self.feed(scale)
        count = together(self.task.evaluation_batch, feed.bytes_each)
        for index in torch.split(torch.from_numpy(rows), count) if len(rows) else ():
            with self.threads(), torch.inference_mode():
                self._model.load(model)
                self._model.mode(training=False)
                inputs, targets = feed.take(index)
                with self._autocast():
                    outputs = self._model.module(inputs)
                del inputs  # before the next ones are decoded
                result: npt.NDArray[np.float32] = outputs.float().cpu().numpy()
            yield result, arrays_of(targets)

    def feed(self, scale: Sums) -> Feed:
        """The records as the model takes them, scaled with `scale`, kept until another comes. Raises ProtocolError."""
        expected = 2 * self.task.transform.size
        if scale.shape != (expected,):
            raise ProtocolError(f"scale of shape {scale.shape}, expected ({expected},)")
        if self._feed is None or not self._feed.has(scale):
            self._feed = None  # which may be large
            self._feed = Feed(self.task, self.records, scale, self.device)
        return self._feed

    def _descend(
        self, request: TrainRequest, feed: Feed, generator: torch.Generator, pull: Callable[[], Tensor | None]
    ) -> tuple[Vector, float]:
        self._model.load(request.model)
        self._model.mode(training=True)
        remaining, rows, losses = self.steps(request), torch.from_numpy(self._train), list[Tensor]()
        stepper = make_stepper(self._model, request.plan, remaining, pull, scaled=self.precision == "fp16")
        while remaining:
            order, losses = rows[torch.randperm(len(rows), generator=generator)], []
            for inputs, targets in feed.batches(order, request.batch_size, coupled=self.task.layout.coupled):
                with self._autocast():
                    outputs = self._model.module(inputs)
                each = self._loss(outputs.float(), targets)
                losses.append(each.detach())
                remaining -= stepper(each)
                PROGRESS.step()
                if not remaining:
                    break
            remaining -= remaining and stepper.end_epoch()
        with np.errstate(over="ignore", invalid="ignore"):  # found out below
            update: Vector = self._model.gathered().cpu().numpy() - request.model
        mean_loss = float(torch.cat(losses).mean())
        if not (np.isfinite(mean_loss) and np.isfinite(update).all()):
            raise TrainingError(f"round {request.round}: loss or update is not finite; is the learning rate too high?")
        return update, mean_loss

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


def judged(task: Task, outputs: npt.NDArray[np.float32], targets: Targets) -> tuple[Sums, bool]:
    """The task's metric sums of `outputs` [n, …], and whether one of them had to be cut (`fitted`)."""
    fitting, losses = fitted(task, outputs, targets)
    return task.metrics.sums(fitting, targets, losses), fitting is not outputs


def fitted(
    task: Task, outputs: npt.NDArray[np.float32], targets: Targets
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """`outputs` [n, …] as they are measured, and the losses of the records [n].

    Each record by itself: what is not a number counts as 0, and outputs and losses are cut to ±`LARGEST_OUTPUT`, which
    no sane model comes near. So a record moves a sum by a bounded amount, the records beside it not at all, and no
    model can make an evaluation fail.
    """
    if task.loss is None:
        raise ConfigError(f"task '{task.name}' has no model to evaluate")
    fitting = saturated(outputs, LARGEST_OUTPUT)
    losses = task.loss(torch.from_numpy(fitting), tensors_of(targets)).numpy()
    return fitting, saturated(losses, LARGEST_OUTPUT)


def order_seed(seed: int, round_number: int, site: str, sum_: bytes = b"") -> int:
    """The seed of an institution's order of records in a round, and in the sum that M1 opens: no node's id is in it."""
    digest = hashlib.sha256(f"sovfed/order/{seed}/{round_number}/{site}".encode() + sum_).digest()
    return int.from_bytes(digest[:8], "big") >> 1
