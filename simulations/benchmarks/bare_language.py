"""How fast an institution trains a language model, against a plain loop of torch on the same windows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import torch

from sovfed.clients.training.local import LocalTraining
from sovfed.federation.messages import TrainRequest
from sovfed.federation.tasks import initial_vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.data.tokens import Windows
    from sovfed.federation.tasks import Task

STEPS: Final = 6  # of a round
RATE: Final = 0.01


def tokens_per_s(task: Task, windows: Windows, batch: int, times: int) -> tuple[float, float]:
    """Tokens a CPU second of the trainer's rounds and of a loop with `torch.optim.SGD`, the best of `times` turns."""
    ours, bare = _trainer(task, windows, batch), _loop(task, windows, batch)
    seconds = [(_seconds(ours), _seconds(bare)) for _ in range(times + 1)][1:]  # the first warms up
    tokens = STEPS * batch * (task.schema.shaped[0].size - 1)
    return tokens / min(own for own, _ in seconds), tokens / min(loop for _, loop in seconds)


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _trainer(task: Task, windows: Windows, batch: int) -> Callable[[], object]:
    training, model = LocalTraining(task, windows, site="", device="cpu"), initial_vector(task, 0)
    request = TrainRequest(
        run="bench", round=1, task=task.name, seed=0, local_epochs=1, local_steps=STEPS, batch_size=batch,
        learning_rate=RATE, proximal_mu=0.0, model=model, scale=task.transform.public_scale,
    )  # fmt: skip
    return lambda: training.train(request)


def _loop(task: Task, windows: Windows, batch: int) -> Callable[[], object]:
    """As a researcher would write it, with all windows in memory."""
    module = task.model().train()
    optimizer = torch.optim.SGD(module.parameters(), RATE)
    rows = torch.from_numpy(windows.take(windows.train)[task.schema.shaped[0].name].astype("int64"))

    def steps() -> None:
        for index in torch.split(torch.randperm(len(rows))[: STEPS * batch], batch):
            optimizer.zero_grad()
            (-module(rows[index]).mean()).backward()
            optimizer.step()

    return steps
