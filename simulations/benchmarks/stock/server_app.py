"""The server's half: FedAvg's own loop, `start`, with a clock at the three hooks that it offers.

A round is what FedAvg does by default and what sovfed does in one: train the model, then evaluate it at the nodes.
One line per round goes to the file `output`: round, replies, seconds (wall), seconds_compute (the slowest node's),
bytes (of the arrays, both ways); and the last three of the training half alone (`training_…`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Clock:
    """Writes a round's line when FedAvg, having trained and evaluated, offers to evaluate centrally too."""

    def __init__(self, output: Path) -> None:
        self.output, self.started = output, 0.0
        self.line: dict[str, float] = {}

    def fold_training(self, replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
        """`train_metrics_aggr_fn`: notes the slowest node's seconds and the size of what came up."""
        slowest = max(_seconds(reply) for reply in replies)
        self.line = {
            "replies": len(replies),
            "training_seconds": time.monotonic() - self.started,
            "training_seconds_compute": slowest,
            "training_bytes": sum(reply["arrays"].count_bytes() for reply in replies),
        }
        return MetricRecord({"seconds_compute": slowest})

    def fold_evaluation(self, replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
        """`evaluate_metrics_aggr_fn`: the round is only as whole as its smaller half."""
        slowest = max(_seconds(reply) for reply in replies)
        self.line["replies"] = min(self.line["replies"], len(replies))
        self.line["seconds_compute"] = self.line["training_seconds_compute"] + slowest
        return MetricRecord({"seconds_compute": slowest})

    def round_ended(self, number: int, arrays: ArrayRecord) -> None:
        """`evaluate_fn`: called before the first round with number 0, then after each round."""
        if self.line:
            down = self.line["replies"] * arrays.count_bytes()
            self.line["training_bytes"] += down
            self.line["bytes"] = self.line["training_bytes"] + down
            self.line |= {"round": number, "seconds": time.monotonic() - self.started}
            with self.output.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(self.line) + "\n")
        self.line = {}
        self.started = time.monotonic()


def _seconds(reply: RecordDict) -> float:
    seconds = reply.metric_records["metrics"]["seconds"]
    if not isinstance(seconds, float):
        raise TypeError(f"seconds is {seconds!r}, expected a float")
    return seconds


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over all nodes."""
    config = context.run_config
    nodes = int(config["nodes"])
    clock = Clock(Path(str(config["output"])))
    strategy = FedAvg(
        min_train_nodes=nodes,
        min_evaluate_nodes=nodes,
        min_available_nodes=nodes,
        train_metrics_aggr_fn=clock.fold_training,
        evaluate_metrics_aggr_fn=clock.fold_evaluation,
    )
    start = ArrayRecord([np.zeros(int(config["parameters"]), dtype=np.float32)])
    strategy.start(grid, start, num_rounds=int(config["rounds"]), evaluate_fn=clock.round_ended)
