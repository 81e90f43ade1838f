"""How fast an institution trains a language model, against a plain loop of torch on the same windows."""

from __future__ import annotations

import os
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from sovfed.clients.training.device import autocast, choose_device
from sovfed.clients.training.devices import Devices
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.messages import TrainRequest
from sovfed.federation.tasks import initial_vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.data import Dataset
    from sovfed.federation.tasks import Task

STEPS: Final = 6  # of a round
RATE: Final = 0.01


def tokens_per_s(
    task: Task, windows: Dataset, batch: int, times: int, *, steps: int = STEPS, device: str = "cpu",
    precision: str = "float32",
) -> tuple[float, float]:  # fmt: skip
    """Tokens a second (`seconds`) of the trainer's rounds of `steps` steps and of a loop with `torch.optim.SGD`.

    Each the best of `times` turns, which they take one after the other; the loop has the first of several devices.
    """
    place, names = choose_device(device), device.split(",")
    bare = _loop(task, windows, batch, steps, place, precision)
    with nullcontext() if len(names) == 1 else closing(Devices(names, precision)) as devices:
        ours = _trainer(task, windows, batch, steps, device, precision, devices)
        turns = range(times + 1)
        pairs = [(seconds(ours, place, devices), seconds(bare, place)) for _ in turns][1:]  # the first warms up
    tokens = steps * batch * (task.schema.shaped[0].size - 1)
    return tokens / min(own for own, _ in pairs), tokens / min(loop for _, loop in pairs)


def seconds(work: Callable[[], object], device: torch.device, devices: Devices | None = None) -> float:
    """What `work` takes: of a processor its seconds in all threads and processes, of another device those that pass."""

    def clock() -> float:
        if device.type != "cpu":
            return time.perf_counter()
        return time.process_time() + sum(map(_cpu_s, [] if devices is None else devices.processes))

    _settle(device)
    start = clock()
    work()
    _settle(device)
    return clock() - start


def _cpu_s(pid: int) -> float:
    """The seconds of a processor that the process `pid` has had."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _settle(device: torch.device) -> None:
    """Wait for what the device was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _trainer(
    task: Task, windows: Dataset, batch: int, steps: int, device: str, precision: str, devices: Devices | None
) -> Callable[[], object]:
    training = LocalTraining(task, windows, site="", device=device, precision=precision, devices=devices)
    request = TrainRequest(
        run="bench", round=1, task=task.name, seed=0, local_epochs=1, local_steps=steps, batch_size=batch,
        learning_rate=RATE, proximal_mu=0.0, model=initial_vector(task, 0), scale=task.transform.public_scale,
    )  # fmt: skip
    return lambda: training.train(request)


def _loop(
    task: Task, windows: Dataset, batch: int, steps: int, device: torch.device, precision: str
) -> Callable[[], object]:
    """As a researcher would write it, with all windows in the device's memory."""
    module = task.model().to(device).train()
    optimizer = torch.optim.SGD(module.parameters(), RATE)
    rows = torch.from_numpy(windows.take(windows.train)[task.schema.shaped[0].name].astype("int64")).to(device)

    def work() -> None:
        for index in torch.split(torch.randperm(len(rows), device=device)[: steps * batch], batch):
            optimizer.zero_grad()
            with autocast(device, precision):
                log_p = module(rows[index])
            (-log_p.float().mean()).backward()
            optimizer.step()

    return work
