"""`sovfed bench release`: how long a release takes to check, and what the exchange of heads costs a round.

Two federations of this code run on this machine, four institutions each. In the one, gateways exchange heads after each
round, in the other never while it is measured. Their blocks of rounds alternate, and all processes of the one stand
still while the other is measured. Then the agency releases a run's model, all four sign it, and `sovfed verify` checks
it as a command of its own, from its start to its end.
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.models.released import signed_release
from sovfed.federation.config import ClientConfig
from sovfed.federation.files import write_private
from sovfed.federation.host.quiet import python_command, quiet_environment
from sovfed.server.runs.certificate import release
from sovfed.simulations.benchmarks.ours import Ours
from sovfed.simulations.benchmarks.process_tree import paused
from sovfed.simulations.benchmarks.report import Column, Files, Report, conditions, publish
from sovfed.simulations.benchmarks.rounds import workplace

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

NODES: Final = 4
PARAMETERS: Final = 2_500
NEVER_S: Final = 86_400.0
ROUNDS, WARM_UP = 60, 10
BLOCKS: Final = 3
CHECKS: Final = 5
TIMEOUT_S: Final = 300.0
WAIT_S: Final = 30.0


def run(quick: bool, files: Files, console: Console) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds."""
    files.check()
    measured_in = conditions(quick=quick)
    with workplace() as folder:
        usual_s = ClientConfig().heads_every_s
        with_heads, without = _federation(folder / "with", usual_s), _federation(folder / "without", NEVER_S)
        with with_heads, without:
            seconds: dict[str, list[float]] = {"with": [], "without": []}
            for _ in range(BLOCKS if quick else 3 * BLOCKS):
                for name, ours, other in (("with", with_heads, without), ("without", without, with_heads)):
                    with paused(other.roots()):
                        lines = ours.run_rounds("stream", ROUNDS + WARM_UP, PARAMETERS, TIMEOUT_S).lines
                    seconds[name] += [float(line["seconds"]) for line in lines[WARM_UP:]]
            checks, size = _checks(with_heads, folder)
    rows = [_row(f"round, heads {name} exchange", values) for name, values in seconds.items()]
    rows.append(_row("verify", checks))
    report = Report(
        title="Evidence", columns=COLUMNS, rows=rows, conditions=measured_in, figures={"release_bytes": float(size)},
        ratios={
            "verify_seconds": statistics.median(checks),
            "order_overhead_rounds": statistics.median(seconds["with"]) / statistics.median(seconds["without"]),
        },
    )  # fmt: skip
    return publish(report, console, files)


COLUMNS: Final = (
    Column("what", "what"),
    Column("count", "count"),
    Column("median_s", "median, s", "{:.4f}".format),
    Column("least_s", "least", "{:.4f}".format),
    Column("most_s", "most", "{:.4f}".format),
)


def _federation(folder: Path, heads_every_s: float) -> Ours:
    ours = Ours(folder, NODES)
    config = ours.federation.config
    client = dataclasses.replace(config.client, heads_every_s=heads_every_s)
    ours.federation.config = dataclasses.replace(config, client=client)
    return ours


def _checks(ours: Ours, folder: Path) -> tuple[list[float], int]:
    """Seconds of `sovfed verify` over a release that all have signed, and its bytes."""
    federation = ours.federation
    data = release(federation.home, "stream-1", wait_s=WAIT_S)
    for member in federation.institutions:
        data = signed_release(federation.client_home(member.name), data)
    write_private(folder / "bench.release", data)
    root = federation.authority_home / "root.pem"
    command = python_command("sovfed", "verify", str(folder / "bench.release"), "--root", str(root), "--signed-by-all")
    seconds = []
    for _ in range(CHECKS):
        clock = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, env=quiet_environment())
        seconds.append(time.monotonic() - clock)
    return seconds, len(data)


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    return {
        "what": what, "count": len(seconds), "median_s": statistics.median(seconds), "least_s": min(seconds),
        "most_s": max(seconds),
    }  # fmt: skip
