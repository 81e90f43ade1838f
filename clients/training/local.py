"""Local training and evaluation on one institution's records, warm between rounds.

The model's parameters are views of one flat vector, so that loading a model is one copy and the update one subtraction.
Institutions of one process may share a model: nothing of it outlives a call.
"""

from __future__ import annotations

import hashlib
import logging
import math
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat, starmap
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sovfed import __version__
from sovfed.clients.training.device import (
    OUT_OF_MEMORY,
    PRECISIONS,
    SMALL,
    autocast,
    choose_device,
    cpu_threads,
    device_name,
    forget_freed,
    matrices,
    one_thread,
    require_precision,
    seeded,
)
from sovfed.clients.training.devices import Devices, why_first_device_alone
from sovfed.clients.training.feed import Feed, Targets, arrays_of, batches_of, profile_of, together
from sovfed.clients.training.halfway import Halfway, Key, generators, set_generators
from sovfed.clients.training.judging import judged
from sovfed.clients.training.model import FlatModel
from sovfed.clients.training.progress import PROGRESS
from sovfed.clients.training.staging import Coming, one_behind
from sovfed.clients.training.steps import make_stepper
from sovfed.federation.errors import ConfigError, DeviceLostError, ProtocolError, TrainingError
from sovfed.federation.messages import TrainRequest
from sovfed.federation.tasks.trees import size, split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from sovfed.clients.data import Dataset, Indices
    from sovfed.clients.training.moments import Moments
    from sovfed.clients.training.steps import Stepper
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.plan import LocalPlan
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.trees import Tree

log = logging.getLogger(__name__)
WARMING: Final = 64  # records


@dataclass(frozen=True)
class Begun:
    """Where a round stands: steps still to take, and of this epoch the records to come and the losses so far [n]."""

    remaining: int
    order: Tensor
    losses: Tensor


def evenly(rows: Indices, most: int) -> Indices:
    """At most `most` of `rows`, as far apart as they can be: in their order stand sites, eras, persons."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


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
        halfway: Halfway | None = None,
        source: object = None,
        devices: Devices | None = None,
        moments: Moments | None = None,
        evaluation_records: int = 0,
    ) -> None:
        """`site` makes the order of this institution's records its own, and so does the sum that an update goes into.

        `reproducible` leaves the sum out of it. A round passes over the records `most_epochs` times at most, however
        many steps are asked for: to refuse would tell how many records there are. `halfway` keeps the state of a long
        round; `source` is its word on where the records came from, at the moment they were read. `moments` keeps
        what an optimizer carries to the next round. Rounds are evaluated on `evaluation_records` of those held out,
        drawn evenly; 0: on all. Over several `devices` a batch is divided where it can be; all else is done on the
        first. Raises ConfigError.
        """
        if task.loss is None:
            raise ConfigError(f"task '{task.name}' has no model to train")
        self.task, self.records, self.device = task, records, choose_device(device)
        self.precision = require_precision(precision)
        self._casts = PRECISIONS[precision] != torch.float32
        self._site, self._loss, self._reproducible, self._most_epochs = site, task.loss, reproducible, most_epochs
        self._model, self._halfway, self._source = make_model(task, self.device), halfway, source
        self._moments, self._devices = moments, devices
        if devices is not None and (reason := why_first_device_alone(task)):
            log.warning("task %s trains on %s alone: %s", task.name, self.device, reason)
            self._devices = None
        self._feed: Feed | None = None
        self._most: int | None = None  # records at once of a step, and of an evaluation, since memory ran out
        self._most_evaluated = task.evaluation_batch
        self._train, self._test = records.train, records.test
        self._sample = records.test if not evaluation_records else evenly(records.test, evaluation_records)
        self._larger_batch = 0  # the largest that was asked for, where it was more than there are records

    @property
    def count(self) -> int:
        """Training records."""
        return len(self._train)

    @property
    def device_name(self) -> str:
        """The devices that train, with the maker's name of a GPU."""
        names = [str(self.device)] if self._devices is None else self._devices.names
        return ", ".join(device_name(torch.device(name)) for name in names)

    def profile(self) -> Sums:
        """`Transform.profile` of the training records."""
        return profile_of(self.task, self.records, self._train)

    def warm_up(self) -> None:
        """Take one step and one evaluation, so that the first round waits for nothing that torch loads late."""
        everything = self._train, self._test, self._halfway
        self._train, self._test, self._halfway = self._train[:WARMING], self._test[:WARMING], None
        scale = self.task.transform.public_scale
        model = np.zeros(self.task.parameters, dtype=np.float32)
        request = TrainRequest(
            run="warm-up", round=1, task=self.task.name, seed=0, local_epochs=1, batch_size=max(1, self.count),
            learning_rate=1e-9, proximal_mu=0.0, model=model, scale=scale,
        )  # fmt: skip
        try:
            if len(self._train):
                self.train(request)
            self.evaluate(model, scale)
        finally:
            self._train, self._test, self._halfway = everything

    def steps(self, request: TrainRequest) -> int:
        """The gradient steps of `request`'s round here."""
        return self._steps(request.plan)

    def _steps(self, plan: LocalPlan) -> int:
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
        Deterministic on a CPU (with `SMALL` or more parameters: for a given number of threads). Where memory runs out,
        the round begins anew with half as many records at once, a step's gradient being that of all of them still; and
        once where one of several devices is lost. Raises TrainingError if a value is not finite, memory does not do for
        one record, or a device is lost again.
        """
        if not self.count:
            raise TrainingError(f"round {request.round}: there are no training records")
        if request.batch_size > max(self.count, self._larger_batch):
            self._larger_batch = request.batch_size
            log.info(
                "task %s: a batch of %d asks for more than the %d training records here: a step takes all of them",
                self.task.name, request.batch_size, self.count,
            )  # fmt: skip
        lost = False
        while True:
            try:
                trained = self._tried(request, correction, anchor)
            except DeviceLostError as error:
                if lost:
                    raise
                lost = True
                log.warning("%s: round %d begins anew", error, request.round)
                continue
            if trained is not None:
                return trained
            forget_freed(self.device)

    def _tried(
        self, request: TrainRequest, correction: Vector | None, anchor: Vector | None
    ) -> tuple[Vector, float] | None:
        """As `train`; None if memory ran out, and fewer records at once may do. Raises TrainingError."""
        try:
            return self._seeded(request, correction, anchor)
        except OUT_OF_MEMORY as error:
            at_once = min(self._most or request.batch_size, request.batch_size)
            if at_once == 1 or self.task.layout.coupled:  # whose statistics are of all records of a batch
                raise TrainingError(f"round {request.round}: out of memory on {self.device}") from error
        self._most = -(-at_once // 2)
        log.warning("out of memory on %s: %d records of a step at once from now on", self.device, self._most)
        return None

    def _seeded(self, request: TrainRequest, correction: Vector | None, anchor: Vector | None) -> tuple[Vector, float]:
        feed = self.feed(request.scale)
        sum_ = b"" if self._reproducible else request.begin.tobytes()  # no two sums have the same M1
        seed = order_seed(request.seed, request.round, self._site, sum_)
        with self.threads(), matrices(self.precision), seeded(seed, self.device):  # for models with dropout
            pull = self._make_pull(request, correction, anchor)
            beside: list[str] = []
            if self._devices is not None:
                beside, pull = self._devices.names, self._with_others(self._devices, pull)
                self._devices.begin(self.task, request.scale)
            key = None
            if self._halfway is not None:
                key = Key(request, (*self._about(), seed, *beside), (correction, anchor))
            return self._descend(request, feed, torch.Generator().manual_seed(seed), pull, key)

    def _about(self) -> tuple[Any, ...]:
        """What a state that was kept must be of to be gone on with: version, records, device, arithmetic."""
        return __version__, self._site, self.count, self._source, str(self.device), self.precision

    def evaluate(self, model: Vector, scale: Sums) -> Sums:
        """The task's metric sums of `model` (shape [d]) over the held-out records."""
        return self.measure(model, scale)[0]

    def measure(self, model: Vector, scale: Sums, *, sampled: bool = False) -> tuple[Sums, bool]:
        """As `evaluate`, and whether an output had to be cut (`judged`); `sampled`: over the sample of rounds."""
        total, cut = np.zeros(self.task.evaluation_size), False
        for outputs, targets in self.outputs(model, scale, self._sample if sampled else self._test):
            sums, one_cut = judged(self.task, outputs, targets)
            total += sums
            cut = cut or one_cut
        return total, cut

    def logits(self, model: Vector, scale: Sums, rows: Indices) -> npt.NDArray[np.float32]:
        """The model's float32 outputs for `rows`, shape [n, …]."""
        return np.concatenate([outputs for outputs, _ in self.outputs(model, scale, rows)])

    def outputs(self, model: Vector, scale: Sums, rows: Indices) -> Iterator[tuple[npt.NDArray[np.float32], Targets]]:
        """The model's float32 outputs [n, …] for `rows`, and their targets, at most `evaluation_batch` at a time."""
        for coming in one_behind(self._forwards(model, self.feed(scale), rows)):
            outputs, targets = (arrays_of(tree) for tree in coming.arrived())
            yield cast("npt.NDArray[np.float32]", outputs), targets

    def _forwards(self, model: Vector, feed: Feed, rows: Indices) -> Iterator[Coming]:
        """Outputs and targets for `rows`, as many at once as memory does for. Raises TrainingError."""
        start = 0
        while start < len(rows):
            at_once = together(self._most_evaluated, feed.bytes_each)
            coming = self._forward(model, feed, torch.from_numpy(rows[start : start + at_once]))
            if coming is None:
                self._most_evaluated = -(-at_once // 2)
                forget_freed(self.device)
                continue
            start += at_once
            yield coming

    def _forward(self, model: Vector, feed: Feed, index: Tensor) -> Coming | None:
        """Outputs and targets of the records at `index`; None if memory does not do for so many at once.

        Raises TrainingError if it does not do for one.
        """
        try:
            with self.threads(), matrices(self.precision), torch.inference_mode():
                self._model.load(model)
                self._model.mode(training=False)
                inputs, targets = feed.take(index)
                outputs = self._computed(inputs)
                del inputs  # before the next ones are decoded
                return Coming(self.device, outputs, targets)
        except OUT_OF_MEMORY as error:
            if len(index) == 1:
                raise TrainingError(f"evaluation: out of memory on {self.device}") from error
        return None

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
        self,
        request: TrainRequest,
        feed: Feed,
        generator: torch.Generator,
        pull: Callable[[], Tensor | None],
        key: Key | None,
    ) -> tuple[Vector, float]:
        """As `train`; `key` says of what work a state is that is kept halfway, None where none is."""
        self._model.load(request.model)
        self._model.mode(training=True)
        plan, rows = request.plan, torch.from_numpy(self._train)
        remaining = self._steps(plan)
        stepper = make_stepper(self._model, plan, remaining, pull, scaled=self.precision == "fp16")
        halfway = self._halfway
        begun = None if halfway is None or key is None else self._begun(halfway, key, stepper, generator)
        if begun is None and request.keep_state:
            self._take_up(request, stepper)
        while remaining:
            if begun is None:
                coming, losses = rows.index_select(0, torch.randperm(len(rows), generator=generator)), []
            else:
                coming, losses, remaining = begun.order, [begun.losses], begun.remaining
            begun, done = None, 0
            for inputs, targets, count in self._batches(feed, coming, request.batch_size):
                remaining -= stepper(self._losses(inputs, targets, losses), count)
                self._add_losses_of_others(losses)
                PROGRESS.step()
                done += count
                if not remaining:
                    break
                if halfway is not None and key is not None and done < len(coming) and halfway.due():
                    self._keep(halfway, key, stepper, Begun(remaining, coming[done:], torch.cat(losses)), generator)
            remaining -= remaining and stepper.end_epoch()
            self._add_losses_of_others(losses)
        if halfway is not None:
            halfway.end()
        with np.errstate(over="ignore", invalid="ignore"):  # found out below
            update: Vector = self._model.gathered().cpu().numpy() - request.model
        mean_loss = float(torch.cat(losses).mean())
        if not (math.isfinite(mean_loss) and np.isfinite(update).all()):
            raise TrainingError(f"round {request.round}: loss or update is not finite; is the learning rate too high?")
        if request.keep_state:
            self._keep_moments(request, stepper)
        return update, mean_loss

    def _batches(self, feed: Feed, order: Tensor, batch: int) -> Iterator[tuple[Tree, Tree, int]]:
        """The records in `order`, `batch` at a time: what of them is computed here, and how many all are."""
        if self._devices is None:
            for inputs, targets in feed.batches(order, batch, coupled=self.task.layout.coupled):
                yield inputs, targets, size(targets)
            return
        own, share = self._devices.own(order, batch)
        counts = self._devices.hand_out(feed.stored, order, batch, self._model.flat, lambda: self._most)
        for count, (inputs, targets) in zip(counts, feed.batches(own, share), strict=True):
            yield inputs, targets, count

    def _with_others(self, devices: Devices, pull: Callable[[], Tensor | None]) -> Callable[[], Tensor | None]:
        """`pull`, and what the other devices add to the mean gradient."""

        def pulled() -> Tensor | None:
            added, theirs = pull(), devices.mean(self.device)
            return added if theirs is None else theirs if added is None else theirs.add_(added)

        return pulled

    def _add_losses_of_others(self, told: list[Tensor]) -> None:
        if self._devices is not None:
            told += [losses.to(self.device) for losses in self._devices.losses()]

    def _take_up(self, request: TrainRequest, stepper: Stepper) -> None:
        """Let `stepper` go on with the moments of the round before, if this institution had a part in it."""
        kept = None if self._moments is None else self._moments.load(request, self._about())
        if kept is None:
            return
        try:
            stepper.restore({"step": 0, "taken": kept[0]}, kept[1])
        except ConfigError as error:
            log.warning("round %d: fresh moments: %s", request.round, error)

    def _keep_moments(self, request: TrainRequest, stepper: Stepper) -> None:
        """Put down what `stepper` carries; what is not finite would spoil all rounds to come."""
        state = stepper.state()
        if self._moments is None or state is None or not all(slot.isfinite().all() for slot in state[1].values()):
            return
        self._moments.save(request, self._about(), state[0]["taken"], state[1])

    def _begun(self, halfway: Halfway, key: Key, stepper: Stepper, generator: torch.Generator) -> Begun | None:
        """Where the round stood when a trainer died in it, with everything set to that; None of one that is new."""
        kept = halfway.begin(key)
        if kept is None:
            return None
        remaining, counts, tensors = kept
        self._model.restore(tensors)
        stepper.restore(counts, tensors)
        generator.set_state(tensors["order.generator"])
        set_generators(self.device, tensors)
        return Begun(remaining, tensors["order"], tensors["losses"].to(self.device))

    def _keep(self, halfway: Halfway, key: Key, stepper: Stepper, begun: Begun, generator: torch.Generator) -> None:
        """Put down where the round stands, unless the stepper is in the middle of something."""
        state = stepper.state()
        if state is None:
            return
        counts, tensors = state
        tensors |= {"order": begun.order, "losses": begun.losses, "order.generator": generator.get_state()}
        halfway.keep(key, begun.remaining, counts, tensors | self._model.state() | generators(self.device))

    def _losses(self, inputs: Tree, targets: Tree, told: list[Tensor]) -> Iterable[Tensor]:
        """The losses of a batch [n], in pieces of as many records as memory does for; `told` gets them too."""
        most = self._most
        if most is None or size(targets) <= most:
            return (self._losses_of(inputs, targets, told),)
        return starmap(self._losses_of, zip(split(inputs, most), split(targets, most), repeat(told), strict=False))

    def _losses_of(self, inputs: Tree, targets: Tree, told: list[Tensor]) -> Tensor:
        losses = self._loss(self._computed(inputs), targets)
        told.append(losses.detach())
        return losses

    def _computed(self, inputs: Tree) -> Tensor:
        """The model's outputs [n, …], in float32 whatever they are computed in."""
        outputs: Tensor
        if self._casts:
            with autocast(self.device, self.precision):
                outputs = self._model.apply(inputs)
        else:
            outputs = self._model.apply(inputs)
        return outputs if outputs.dtype == torch.float32 else outputs.float()

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
        if self.task.parameters < SMALL:
            return one_thread()
        return nullcontext() if self._devices is None else cpu_threads(self._devices.threads)


def order_seed(seed: int, round_number: int, site: str, sum_: bytes = b"") -> int:
    """The seed of an institution's order of records in a round, and in the sum that M1 opens: no node's id is in it."""
    digest = hashlib.sha256(f"sovfed/order/{seed}/{round_number}/{site}".encode() + sum_).digest()
    return int.from_bytes(digest[:8], "big") >> 1
