"""The server's half: FedAvg's own loop, `start`, with a clock at the two hooks that it offers.

One line per round goes to the file `output`: round, replies, seconds (wall), seconds_compute (the slowest node's),
bytes (of the arrays, both ways).
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
    """Writes a round's line when FedAvg, having folded the replies, offers to evaluate the new model."""

    def __init__(self, output: Path) -> None:
        self.output, self.started = output, 0.0
        self.line: dict[str, float] = {}

    def fold_metrics(self, replies: list[RecordDict], weighted_by_key: str) -> MetricRecord:
        """`train_metrics_aggr_fn`: notes the slowest node's seconds and the size of what came up."""
        slowest = max(_seconds(reply) for reply in replies)
        up = sum(reply["arrays"].count_bytes() for reply in replies)
        self.line = {"replies": len(replies), "seconds_compute": slowest, "bytes": up}
        return MetricRecord({"seconds_compute": slowest})

    def round_ended(self, number: int, arrays: ArrayRecord) -> None:
        """`evaluate_fn`: called before the first round with number 0, then after each round."""
        if self.line:
            self.line["bytes"] += self.line["replies"] * arrays.count_bytes()  # and went down
            self.line |= {"round": number, "seconds": time.monotonic() - self.started}
            with self.output.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(self.line) + "\n")
        self.line = {}
        self.started = time.monotonic()


def _seconds(reply: RecordDict) -> float:
    found = reply.metric_records["metrics"]["seconds"]
    if not isinstance(found, float):
        raise TypeError(f"seconds is {found!r}, expected a float")
    return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg over all nodes; nothing is evaluated, neither here nor there."""
    config = context.run_config
    nodes = int(config["nodes"])
    clock = Clock(Path(str(config["output"])))
    strategy = FedAvg(
        fraction_evaluate=0.0,
        min_train_nodes=nodes,
        min_available_nodes=nodes,
        train_metrics_aggr_fn=clock.fold_metrics,
    )
    start = ArrayRecord([np.zeros(int(config["parameters"]), dtype=np.float32)])
    strategy.start(grid, start, num_rounds=int(config["rounds"]), evaluate_fn=clock.round_ended)
