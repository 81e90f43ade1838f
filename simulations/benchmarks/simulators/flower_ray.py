"""Flower's own simulation: Ray, FedAvg's loop, a ClientApp as in its tutorials.

Its best case: an actor keeps the records and the model from one message to the next.
"""

from __future__ import annotations

import os
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sovfed.simulations.benchmarks.ray_process import run_or_exit
from sovfed.simulations.benchmarks.simulators.workload import FOLDER, Clock, Job, Workload, cached_work

client_app = ClientApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Evaluate and train; the reply has the whole model, as Flower's FedAvg wants it."""
    work, model = cached_work(os.environ[FOLDER])
    site_records = work.part(int(context.node_config["partition-id"]))
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loss, right = work.evaluate(model, site_records)
    work.train(model, site_records)
    metrics: dict[str, Any] = {
        "num-examples": len(site_records.train[1]),
        "loss": loss,
        "right": right,
        "tested": len(site_records.test[1]),
    }
    content: dict[str, Any] = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


def run(system: str, job: Job, rounds: int, clock: Clock) -> None:
    """`flwr.simulation.run_simulation` with an actor a CPU."""
    os.environ[FOLDER] = str(job.folder)
    server_app = ServerApp()

    def fold(replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
        metrics: list[Any] = [reply["metrics"] for reply in replies]
        sums: dict[str, Any] = {key: sum(client[key] for client in metrics) for key in ("right", "tested")}
        if len(replies) != job.cohort:
            raise RuntimeError(f"{len(replies)} of {job.cohort} clients replied")
        clock.accuracy = sums["right"] / sums["tested"]
        return MetricRecord(sums)

    def round_ended(number: int, arrays: ArrayRecord) -> None:
        if number:
            clock.mark()
        if number == rounds:
            clock.weigh()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=job.cohort / job.institutions, fraction_evaluate=0.0, min_train_nodes=job.cohort,
            min_available_nodes=job.institutions, train_metrics_aggr_fn=fold,
        )  # fmt: skip
        start = ArrayRecord(Workload(job).model().state_dict())
        strategy.start(grid=grid, initial_arrays=start, num_rounds=rounds, evaluate_fn=round_ended)

    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": os.cpu_count(), "include_dashboard": False},
    }
    app = client_app
    if system == "flower_ray_opacus":
        from sovfed.simulations.benchmarks.simulators.opacus_client import client_app as app
    run_or_exit(server_app, app, job.institutions, backend)
    if len(clock.marks) != rounds:
        raise RuntimeError(f"Flower's simulation ended after {len(clock.marks)} of {rounds} rounds")
