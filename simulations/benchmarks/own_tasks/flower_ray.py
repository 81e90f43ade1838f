"""The dictionary task in Flower's own simulation: Ray, FedAvg's loop, and a ClientApp as its tutorials write it.

Its best case, as in `simulators/flower_ray.py`: an actor keeps the records and the model from one message to the next.
In a round each institution evaluates the model on its held-out records, then trains one epoch of torch's AdamW.
"""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.nn.functional import cross_entropy

from sovfed.federation.config import DataConfig
from sovfed.simulations.benchmarks.own_tasks.dictionary import BATCH, NAME, RATE, TASK, Net, load
from sovfed.simulations.benchmarks.process_tree import cpu_seconds
from sovfed.simulations.benchmarks.ray_process import run_or_exit

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

KEPT: Final = 1_000  # institutions whose records an actor keeps
Part = tuple[dict[str, "Tensor"], "Tensor"]  # inputs by name, and targets
client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Evaluate and train; the reply has the whole model, as Flower's FedAvg wants it."""
    model, (own, held_out) = _model(), _parts(int(context.node_config["partition-id"]))
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loss, right = _evaluate(model, *held_out)
    _train(model, *own)
    metrics: dict[str, Any] = {
        "num-examples": len(own[1]), "loss": loss, "right": right, "tested": len(held_out[1]),
    }  # fmt: skip
    content: dict[str, Any] = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


def simulate(folder: Path, institutions: int, rounds: int) -> dict[str, Any]:
    """As `rounds.simulate`, by `flwr.simulation.run_simulation` with an actor a CPU."""
    os.environ["FLWR_HOME"] = str(folder / "flwr")  # before it is imported
    marks: list[tuple[float, float]] = []  # wall and CPU seconds when a round had ended
    accuracies: list[float] = []
    server_app = ServerApp()

    def fold(replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
        metrics: list[Any] = [reply["metrics"] for reply in replies]
        sums: dict[str, Any] = {key: sum(client[key] for client in metrics) for key in ("right", "tested")}
        if len(replies) != institutions:
            raise RuntimeError(f"{len(replies)} of {institutions} clients replied")
        accuracies.append(sums["right"] / sums["tested"])
        return MetricRecord(sums)

    def ended(number: int, _arrays: ArrayRecord) -> None:
        if number:
            marks.append((time.perf_counter(), cpu_seconds([os.getpid()])))

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        strategy = FedAvg(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=institutions, min_available_nodes=institutions,
            train_metrics_aggr_fn=fold,
        )  # fmt: skip
        start = ArrayRecord(TASK.model().state_dict())
        start = ArrayRecord({name.removeprefix("inner."): array for name, array in start.to_torch_state_dict().items()})
        strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds + 1, evaluate_fn=ended)

    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": os.cpu_count(), "include_dashboard": False},
    }
    run_or_exit(server_app, client_app, institutions, backend)
    if len(marks) != rounds + 1:
        raise RuntimeError(f"Flower's simulation ended after {len(marks)} of {rounds + 1} rounds")
    wall, cpu = ((last - first) / rounds for first, last in zip(marks[0], marks[-1], strict=True))
    return {"wall_ms": 1e3 * wall, "cpu_ms": 1e3 * cpu, "accuracy": accuracies[-1]}


@lru_cache(1)
def _model() -> Net:
    torch.set_num_threads(1)
    return Net()


@lru_cache(KEPT)
def _parts(institution: int) -> tuple[Part, Part]:
    """The training and the held-out records of an institution, as tensors."""
    records = load(TASK, DataConfig(source=NAME, site=str(institution)))
    bound = TASK.transform.bound(TASK.transform.public_scale)
    sides = []
    for rows in (records.train, records.test):
        table = {name: torch.from_numpy(column) for name, column in records.take(rows).items()}
        inputs, targets = bound.inputs(table), bound.targets(table)
        if not isinstance(inputs, dict) or isinstance(targets, dict):
            raise TypeError("expected inputs by name and one target")
        sides.append((inputs, targets))
    return sides[0], sides[1]


@torch.no_grad()
def _evaluate(model: Net, inputs: dict[str, Tensor], targets: Tensor) -> tuple[float, int]:
    """Σ loss and the number of records told right."""
    model.eval()
    logits = model(**inputs)["logits"]
    model.train()
    return float(cross_entropy(logits, targets, reduction="sum")), int((logits.argmax(1) == targets).sum())


def _train(model: Net, inputs: dict[str, Tensor], targets: Tensor) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for rows in torch.split(torch.randperm(len(targets)), BATCH):
        optimizer.zero_grad()
        logits = model(**{name: part[rows] for name, part in inputs.items()})["logits"]
        cross_entropy(logits, targets[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
