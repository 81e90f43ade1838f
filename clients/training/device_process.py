"""The process of one device beside a trainer's first: gradients of the records that it is told, added up.

`python -m sovfed.clients.training.device_process SOCKET MODEL GRADIENT` (descriptors that it inherits), as
`clients/training/devices.py` starts it; it has what the trainer gave up already, and ends when that does.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load
from torch import Tensor

from sovfed.clients.training.device import OUT_OF_MEMORY, autocast, forget_freed, make_deterministic, matrices
from sovfed.clients.training.devices import BATCH, DONE, FAILED, SCALE, SHARE, TASK, Channel, shared_vector
from sovfed.clients.training.model import FlatModel, gradients
from sovfed.federation.errors import ConfigError
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.logs import log_to_stderr
from sovfed.federation.host.quiet import be_quiet
from sovfed.federation.host.sandbox import FILE_CAPABILITIES, drop_privileges
from sovfed.federation.messages import NORMALISATIONS
from sovfed.federation.tasks import bases
from sovfed.federation.tasks.registry import add, names, versions
from sovfed.federation.tasks.trees import split

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)


class Sum:
    """A task's model on a device, and the sum of the gradients of records since it was last told."""

    def __init__(self, task: Task, told: Mapping[str, Any], model: int, gradient: int) -> None:
        """`model` and `gradient` are descriptors of shared memory."""
        if task.loss is None:
            raise ConfigError(f"task '{task.name}' has no model to train")
        self._task, self._loss, self._precision = task, task.loss, str(told["precision"])
        self.device = torch.device(told["device"])
        if self.device.type == "cuda":  # or a task's own code would make what it makes on the first
            torch.cuda.set_device(self.device)
        self._model = FlatModel(task, self.device)
        self._parameters = tuple(self._model.parameters)
        self._given, self._told = shared_vector(model, told["size"]), shared_vector(gradient, told["size"])
        self._total = torch.zeros_like(self._model.flat)
        self._places = [self._total[part.place].view(part.shape) for part in task.layout.parts]
        self.scale(task.transform.public_scale.tobytes())

    def scale(self, body: bytes) -> None:
        """Another round begins, with that scale of its columns."""
        self._bound = self._task.transform.bound(np.frombuffer(body, np.float64), self.device)
        self._begin()

    def add(self, body: bytes) -> None:
        """Add the gradients of the records in `body`."""
        seed, most, another = SHARE.unpack_from(body)
        if another:
            self._model.load(self._given)
            self._model.mode(training=True)
        torch.manual_seed(seed)
        columns = load(body[SHARE.size :]).items()
        table = {name: torch.from_numpy(column).to(self.device) for name, column in columns}
        inputs, targets = self._bound.inputs(table), self._bound.targets(table)
        with matrices(self._precision):
            for some, theirs in zip(split(inputs, most), split(targets, most), strict=True):
                with autocast(self.device, self._precision):
                    outputs = self._model.module(some)
                losses = self._loss(outputs.float(), theirs)
                slopes = gradients(losses, torch.ones_like(losses), self._parameters)
                self._losses.append(losses.detach())
                for place, slope in zip(self._places, slopes, strict=True):
                    if slope is not None:
                        place.add_(slope)

    def tell(self) -> bytes:
        """The losses, once the sum is where the trainer looks for it."""
        torch.from_numpy(self._told).copy_(self._total)
        losses = torch.cat(self._losses).cpu().numpy().tobytes()
        self._begin()
        return losses

    def _begin(self) -> None:
        self._total.zero_()
        self._losses: list[Tensor] = []


class Process:
    """Does what the trainer says, one message after the other."""

    def __init__(self, channel: Channel, model: int, gradient: int) -> None:
        self._channel, self._memory = channel, (model, gradient)
        self._sum: Sum | None = None
        self._failed: bytes | None = None  # why, since the last answer; nothing if memory ran out

    def run(self) -> None:
        """Until the trainer is gone."""
        while True:
            kind, body = self._channel.receive()
            self._failed = None if kind in (TASK, SCALE) else self._failed
            answer = b""
            try:
                answer = b"" if self._failed is not None else self._do(kind, body)
            except OUT_OF_MEMORY:
                self._failed = b""
            except Exception as error:
                log.exception("this device's share failed")
                self._failed = type(error).__name__.encode()
            if kind in (SCALE, BATCH):
                continue
            if self._failed is None:
                self._channel.send(DONE, answer)
            else:
                self._channel.send(FAILED, self._failed)
                self._failed = None

    def _do(self, kind: bytes, body: bytes) -> bytes:
        if kind == TASK:
            told = json.loads(body)
            self._sum = None
            torch.set_num_threads(told["threads"])
            if told["deterministic"]:
                make_deterministic()
            self._sum = Sum(_task(told), told, *self._memory)
            return b""
        if self._sum is None:
            raise ConfigError("no task was told")
        if kind == SCALE:
            self._sum.scale(body)
        elif kind == BATCH:
            self._add(self._sum, body)
        else:
            return self._sum.tell()
        return b""

    def _add(self, sum_: Sum, body: bytes) -> None:
        try:
            sum_.add(body)
        except OUT_OF_MEMORY:
            forget_freed(sum_.device)
            raise


def _task(told: Mapping[str, Any]) -> Task:
    """The trainer's task. Raises ConfigError if this process knows none of that digest."""
    if told["text"]:
        from sovfed.federation.tasks.declared import task_from_text

        for folder in told["bases"]:
            bases.offer(folder)
        add(task_from_text(told["text"]))
    elif told["home"] is not None and told["name"] not in names():
        from sovfed.clients.home.packages import make_packages_known
        from sovfed.clients.home.policy import load_policy

        make_packages_known(Path(told["home"]), load_policy(Path(told["home"])))
    for version in versions(told["name"]):
        for task in map(version.with_normalisation, NORMALISATIONS):
            if task.digest == told["digest"]:
                return task
    raise ConfigError(f"task '{told['name']}' is not that of a device's process: it is no file, package or archive")


def _end_with_trainer(descriptor: int) -> None:
    """Whatever this process is at: a trainer that was killed leaves nothing behind."""
    waiting = select.poll()
    waiting.register(descriptor, select.POLLRDHUP)
    waiting.poll()
    os._exit(0)


def main() -> int:
    """Serve the trainer that started this process."""
    drop_privileges(FILE_CAPABILITIES)
    for number in (signal.SIGTERM, signal.SIGINT):  # which the trainer gets too, and decides
        signal.signal(number, signal.SIG_IGN)
    log_to_stderr()
    be_quiet()
    descriptor, model, gradient = map(int, sys.argv[1:])
    threading.Thread(target=_end_with_trainer, args=(descriptor,), daemon=True).start()
    with suppress(OSError):
        Process(Channel(socket.socket(fileno=descriptor)), model, gradient).run()
    return 0


if __name__ == "__main__":
    leave(main)
