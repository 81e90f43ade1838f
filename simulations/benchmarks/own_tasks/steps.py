"""`python -m … SOURCE`: CPU seconds of training rounds of `digits`, one line for each line that comes in.

SOURCE is `ours`, or `bare`: the same steps by a short loop of torch's own. With a folder as SOURCE, whatever sovfed
lies in it trains instead, so that this file, run by its path, measures an older version too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final

BATCH: Final = 32
RATE: Final = 0.05
ROUNDS: Final = 5  # that are timed together


def ours() -> Callable[[], object]:
    """A round of `LocalTraining.train`, by whatever version is imported."""
    import numpy as np

    try:
        from sovfed.clients.training.local import LocalTraining
    except ImportError:  # of before it was a folder
        from sovfed.clients.training import LocalTraining  # type: ignore[attr-defined,no-redef,unused-ignore]
    from sovfed.federation.compose import compose
    from sovfed.federation.messages import TrainRequest
    from sovfed.simulations.population import make_population

    task = _task()
    config = compose(["task=digits", "secagg=none", "simulation.institutions=4"]).config
    training: Any = LocalTraining(task, make_population(config)[0].load(task), site="0", device="cpu")
    if hasattr(task, "transform"):
        scale = task.transform.public_scale
    else:
        from sovfed.federation.tasks import public_scale  # type: ignore[attr-defined,unused-ignore]

        scale = public_scale(task)
    scale.flags.writeable = False
    request = TrainRequest(
        run="bench", round=1, task="digits", seed=0, local_epochs=1, batch_size=BATCH, learning_rate=RATE,
        proximal_mu=0.0, model=np.zeros(task.parameters, np.float32), scale=scale,
    )  # fmt: skip
    return lambda: training.train(request)


def bare() -> Callable[[], object]:
    """The same number of records, batches and steps: torch's SGD, and the update at the end."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    from sovfed.federation.compose import compose
    from sovfed.simulations.population import make_population

    task = _task()
    config = compose(["task=digits", "secagg=none", "simulation.institutions=4"]).config
    records = make_population(config)[0].load(task)
    bound = task.transform.bound(task.transform.public_scale)
    table = {name: torch.from_numpy(column) for name, column in records.take(records.train).items()}
    features, labels, model = bound.inputs(table), bound.targets(table), task.model()
    start = torch.zeros(task.parameters)

    def run() -> torch.Tensor:
        vector_to_parameters(start.clone(), model.parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        for rows in torch.split(torch.randperm(len(labels)), BATCH):
            optimizer.zero_grad()
            cross_entropy(model(features[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return parameters_to_vector(model.parameters()).detach() - start

    return run


def _task() -> Any:
    try:
        from sovfed.federation.tasks.registry import get_task
    except ImportError:  # of before there was a registry
        from sovfed.federation.tasks import get_task  # type: ignore[attr-defined,no-redef,unused-ignore]
    return get_task("digits")


def answer(run: Callable[[], object]) -> None:
    """For each line that comes in, tell the CPU seconds of a round."""
    for _ in range(ROUNDS):
        run()
    _tell("ready")
    for _ in sys.stdin:
        start = time.process_time()
        for _ in range(ROUNDS):
            run()
        _tell(str((time.process_time() - start) / ROUNDS))


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    if sys.argv[1] not in ("ours", "bare"):
        sys.path.insert(0, sys.argv[1])
    answer(bare() if sys.argv[1] == "bare" else ours())
