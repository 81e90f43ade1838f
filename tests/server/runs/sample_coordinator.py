"""A coordinator for the tests of executor and runner: does what the run's configuration says under `do`."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, Context, RecordDict
from flwr.serverapp import Grid

from sovfed.federation.wire.flower import RAW, new_message
from sovfed.federation.wire.grids import FlowerGrid
from sovfed.server.runs import spare
from sovfed.server.runs.serverapp_runner import run


def act(grid: Grid, context: Context, config: dict[str, Any]) -> None:
    """`count` says how much came; `fail` raises a patient's name; `poll` asks for nodes for `seconds`, `hang` waits.

    `echo` sends `rounds` messages of `megabytes` to every node and reports the seconds of each round.
    """
    report(f"config of {len(json.dumps(config))} characters for run {grid.run.run_id}, node {context.node_id}")
    config = config if "do" in config else {"do": "hang", "seconds": 30}
    if config["do"] == "fail":
        raise RuntimeError("patient Maria Musterfrau, born 1950-01-01")
    if config["do"] == "echo":
        echo(FlowerGrid(grid), int(config["rounds"]), int(config["megabytes"]))
    until = time.monotonic() + float(config.get("seconds", 0))
    while time.monotonic() < until:
        if config["do"] == "poll":
            list(grid.get_nodes())
        time.sleep(0.1)


def echo(grid: FlowerGrid, rounds: int, megabytes: int) -> None:
    """Raises unless every reply carries what was sent."""
    nodes = list(grid.get_node_ids())
    for number in range(rounds):
        started = time.monotonic()
        sent = secrets.token_bytes(megabytes * 2**20)
        array = Array(dtype="float32", shape=(len(sent) // 4,), stype=RAW, data=sent)
        content = RecordDict({"vectors": ArrayRecord({"sent": array})})
        messages = [
            new_message(content, run_id=grid.run.run_id, node_id=node, kind="query.echo", group=str(number))
            for node in nodes
        ]
        replies = list(grid.replies(messages, 60))
        if [reply.content.array_records["vectors"]["sent"].data == sent for reply in replies] != [True] * len(nodes):
            raise RuntimeError(f"round {number}: {len(replies)} replies of {len(nodes)}, or another content")
        report(f"round {number}: {time.monotonic() - started:.3f} s")


def report(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--spare", action="store_true")
    options = parser.parse_args()
    vars(spare)["MODULES"] = ()  # it needs none of them
    line = spare.wait_for_task() if options.spare else sys.stdin.read()
    if not line:
        sys.exit(0)
    if options.spare:
        spare.write_output_to(Path(json.loads(line)["log"]))
    sys.exit(run(options.home, options.port, json.loads(line)["token"], act))


if __name__ == "__main__":
    main()
