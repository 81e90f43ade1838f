"""`sovfed bench rounds`: what a round costs beyond the slowest institution's compute, against stock Flower.

Both federations run on this machine at the same time, four institutions each, TLS everywhere. Their blocks of rounds
alternate, and all processes of the one stand still (SIGSTOP) while the other is measured. Three systems:

    stock     Flower 1.42 as documented: subprocess isolation, SQLite, FedAvg's own loop, `flwr run` for each block
    lane      sovfed, rounds on the gRPC stream (server.lane=stream)
    fallback  sovfed, rounds on Flower's own Grid (server.lane=flower); the same processes as `lane`

A round is measured by whoever runs it, from before its first message to after its aggregation. It is what either
system does by default, one local training and one evaluation at every node: two exchanges in stock Flower, one here.
`stock_training` is the first half of the very same stock rounds, for those who would switch the evaluation off. The
tasks send a vector out and back and nothing is learned. Secure aggregation, which stock Flower's strategy loop has not,
is off. Each block's first rounds warm up and are not counted.

Two more systems stand beside `lane` in the same blocks, and are compared with each other by a round's whole wall-clock:

    masked    sovfed on the stream with secure aggregation
    bare      a gRPC stream with mutual TLS to as many processes, and nothing else (`bare.py`)

and, where a Python that has it is given, `nvflare`, NVIDIA FLARE's POC with mutual TLS (`nvflare_poc.py`): the time
from one model's coming to the next one's at the slowest institution, without evaluation.

Last, a fresh federation runs masked rounds of 100 MB, and tells how far each process grew over one that had only seen
10 KB: `memory_…` in multiples of the vector. Of several sizes each has a federation of its own, and `slope_…` is what
each more byte of the vector costs, from the smallest to the largest. `memory_files` are an institution's files of
memory, which belong to no process that has not mapped them; those that the trainer maps count twice.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sovfed.simulations.benchmarks import bare
from sovfed.simulations.benchmarks.nvflare_poc import NVFlare
from sovfed.simulations.benchmarks.ours import Ours, Run
from sovfed.simulations.benchmarks.process_tree import paused
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish
from sovfed.simulations.benchmarks.stock_flower import StockFlower

if TYPE_CHECKING:
    from rich.console import Console

NODES: Final = 4
PARAMETERS: Final = {"10kb": 2_500, "40mb": 10_000_000}  # float32
BLOCK_TIMEOUT_S: Final = 900.0
LANES: Final = {"lane": "stream", "masked": "stream", "fallback": "flower"}
LARGE: Final = 100  # MB of float32
WEIGHED: Final = ("coordinator", "gateway", "trainer", "registry", "supernode", "files")
LONG_RUN, EARLY = 200, 20  # rounds: how long the server is watched, and when it is weighed first
QUICK_S: Final = 130.0  # blocks of slow systems that start later are cut to one round: the whole is 3 to 6 minutes
SLOW: Final = ("stock", "fallback")
BARE, STOCK, MEMORY, NVFLARE = "bare", "stock", "memory", "nvflare"
PARTS: Final = {
    BARE: ("bare", "lane", "masked"), STOCK: ("stock", "lane", "fallback"), MEMORY: (),
    NVFLARE: ("nvflare", "lane", "masked"),
}  # fmt: skip
DEFAULT: Final = (BARE, STOCK, MEMORY)
NO_RUN: Final = Run([], 0.0, [])
MB: Final = 1e6
Growth = dict[str, float]  # MB of each process


@dataclass(frozen=True)
class Block:
    """So many rounds of one system, the first `warm_up` of them not counted."""

    system: str
    payload: str
    rounds: int
    warm_up: int = 0


# Stock Flower alone needs 13 s and more for a round of 10 KB and 15 s and more for one of 40 MB: it comes last.
QUICK: Final = (
    Block("bare", "10kb", 300, 20), Block("lane", "10kb", LONG_RUN - 10, 10), Block("bare", "10kb", 300, 20),
    Block("masked", "10kb", 90, 10), Block("bare", "40mb", 6, 2), Block("lane", "40mb", 8, 4),
    Block("bare", "40mb", 6, 2), Block("masked", "40mb", 6, 3), Block("stock", "10kb", 2, 1),
    Block("fallback", "10kb", 3, 1), Block("stock", "40mb", 2), Block("fallback", "40mb", 2),
    Block("nvflare", "10kb", 4, 1), Block("nvflare", "40mb", 6, 2),
)  # fmt: skip
FULL: Final = 3 * (
    Block("stock", "10kb", 5, 1), Block("bare", "10kb", 300, 20), Block("lane", "10kb", LONG_RUN - 10, 10),
    Block("masked", "10kb", 190, 10), Block("fallback", "10kb", 10, 1),
    Block("stock", "40mb", 3, 1), Block("bare", "40mb", 10, 2), Block("lane", "40mb", 10, 4),
    Block("masked", "40mb", 10, 4), Block("fallback", "40mb", 4, 1),
    Block("nvflare", "10kb", 5, 1), Block("nvflare", "40mb", 10, 2),
)  # fmt: skip


class Peer(Protocol):
    """Another federation, which is up."""

    def start(self) -> object: ...
    def stop(self) -> None: ...
    def roots(self) -> list[int]:
        """Its processes, or those that started them."""

    def run_rounds(self, rounds: int, parameters: int, timeout_s: float) -> list[dict[str, Any]]:
        """Of each round `seconds`, `seconds_compute` and `bytes`."""


def run(
    quick: bool, files: Files, console: Console, parts: Sequence[str] = DEFAULT, megabytes: Sequence[int] = (),
    nvflare: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure, print, write the files that are asked for; what the JSON file holds, of these `parts` alone.

    `megabytes` are the vectors for which processes are weighed, by default one of `LARGE`; `nvflare` is the Python that
    has NVFlare.

    Everything that was started is ended whatever happens. A failure leaves the folder with the logs and names it.
    """
    files.check()
    started = time.monotonic()
    measured_in = conditions(quick=quick)
    systems = {system for part in parts for system in PARTS[part]}
    blocks = [block for block in (QUICK if quick else FULL) if block.system in systems]
    lines, long_run, database = dict[tuple[str, str], list[dict[str, Any]]](), NO_RUN, 0
    if blocks:
        with workplace() as folder:
            stock = StockFlower(folder / "stock", NODES)
            peers: dict[str, Peer] = {STOCK: stock} if STOCK in parts else {}
            if NVFLARE in parts:
                peers[NVFLARE] = NVFlare(nvflare, folder / "nvflare", NODES)
            with _federations(folder, console, peers) as sovfed:
                deadline = started + QUICK_S if quick else math.inf
                lines, long_run = _measure(blocks, peers, sovfed, deadline, console)
            database = _size(stock.database) if STOCK in parts else 0
    growths = _memory(megabytes or [LARGE], console) if MEMORY in parts else {}
    rows = [_row(*of, block_lines) for of, block_lines in lines.items()]
    report = Report(
        title=f"Round overhead, {NODES} institutions",
        columns=COLUMNS,
        rows=rows,
        ratios=_ratios(rows) | _by_wall(rows) | memory_ratios(growths),
        figures={
            **(_figures(long_run) if long_run.lines else {}),
            **({"stock_database_mb": database / MB} if database else {}),
            **{f"growth_mb_{name}_of_{size}": mb for size, growth in growths.items() for name, mb in growth.items()},
            "seconds_total": time.monotonic() - started,
        },
        conditions=measured_in,
        bars=Bars(
            "overhead_median_s", "overhead_min_s", "overhead_max_s", "payload", "system", "overhead of a round, s"
        ),
    )
    return publish(report, console, files)


def _measure(
    blocks: Sequence[Block], peers: Mapping[str, Peer], ours: Ours, deadline: float, console: Console
) -> tuple[dict[tuple[str, str], list[dict[str, Any]]], Run]:
    """The counted rounds of every (system, payload), and the last long run. The others stand still meanwhile.

    On a slow machine, blocks of the slow systems that start after `deadline` are cut to one round.
    """
    lines_by_block: dict[tuple[str, str], list[dict[str, Any]]] = {}
    long_run = NO_RUN
    for block in blocks:
        clock = time.monotonic()
        late = clock > deadline and block.system in SLOW
        warm_up, rounds = (0, 1) if late else (block.warm_up, block.rounds)
        arguments = (warm_up + rounds, PARAMETERS[block.payload], BLOCK_TIMEOUT_S)
        idle = [peers[name].roots() for name in peers if name != block.system]
        if block.system in (*peers, "bare"):
            idle.append(ours.roots())
        with paused(pid for roots in idle for pid in roots):
            if block.system in peers:
                lines = peers[block.system].run_rounds(*arguments)
            elif block.system == "bare":
                lines = _bare(ours, warm_up + rounds, PARAMETERS[block.payload])
            else:
                run = ours.run_rounds(LANES[block.system], *arguments, masked=block.system == "masked")
                lines = run.lines
                long_run = run if len(lines) >= LONG_RUN else long_run
        counted = lines[warm_up:]
        lines_by_block.setdefault((block.system, block.payload), []).extend(counted)
        if block.system == STOCK:
            lines_by_block.setdefault(("stock_training", block.payload), []).extend(map(_training, counted))
        median = statistics.median(map(_overhead, counted))
        console.print(
            f"[green]✓[/] {block.system}, {block.payload}: {median:.3g} s overhead, "
            f"median of {len(counted)} rounds [dim](block took {time.monotonic() - clock:.0f} s)[/]"
        )
    return lines_by_block, long_run


def _bare(ours: Ours, rounds: int, parameters: int) -> list[dict[str, Any]]:
    """Rounds of the bare stream in the form of a round."""
    seconds = bare.rounds(*ours.identities(), 4 * parameters, rounds)
    return [{"seconds": each, "seconds_compute": 0.0, "bytes": 8 * parameters * NODES} for each in seconds]


def _memory(megabytes: Sequence[int], console: Console) -> dict[int, Growth]:
    """How far each process grows with a vector of so many MB, each in a federation of its own."""
    growths = dict[int, Growth]()
    for size in megabytes:
        with workplace() as folder, Ours(folder / "large", NODES, megabytes=size) as sovfed:
            growths[size] = _growth(sovfed, size)
        told = ", ".join(f"{name} {grown:,.0f}" for name, grown in growths[size].items())
        console.print(f"[green]✓[/] {size} MB, growth in MB: {told}")
    return growths


def memory_ratios(growths: Mapping[int, Growth]) -> dict[str, float]:
    """Growth over the largest vector, and what each more byte of it costs, from the smallest to the largest."""
    if not growths:
        return {}
    least, most = min(growths), max(growths)
    ratios = {f"memory_{name}": grown / most for name, grown in growths[most].items()}
    if most > least:
        ratios |= {f"slope_{name}": (growths[most][name] - growths[least][name]) / (most - least) for name in WEIGHED}
    return ratios


def _growth(ours: Ours, megabytes: int) -> Growth:
    """How many MB the largest resident set of each process grew by with masked rounds of such a vector."""
    before = ours.run_rounds("stream", 20, PARAMETERS["10kb"], BLOCK_TIMEOUT_S, masked=True).peaks
    after = ours.run_rounds("stream", 3, int(megabytes * MB) // 4, BLOCK_TIMEOUT_S, masked=True).peaks
    return {name: (after[name] - before[name]) / MB for name in WEIGHED}


def _training(line: dict[str, Any]) -> dict[str, Any]:
    """The training half of a stock round, in the form of a round."""
    return {key: line[f"training_{key}"] for key in ("seconds", "seconds_compute", "bytes")}


def _overhead(line: dict[str, Any]) -> float:
    """Wall less the slowest institution's compute."""
    return max(0.0, float(line["seconds"]) - float(line["seconds_compute"]))


def _row(system: str, payload: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    overheads = [_overhead(line) for line in lines]
    return {
        "system": system,
        "payload": payload,
        "payload_bytes": 4 * PARAMETERS[payload],
        "institutions": NODES,
        "rounds": len(lines),
        "overhead_median_s": statistics.median(overheads),
        "overhead_min_s": min(overheads),
        "overhead_max_s": max(overheads),
        "wall_median_s": statistics.median(line["seconds"] for line in lines),
        "bytes_per_round": statistics.median(line["bytes"] for line in lines),
    }


COLUMNS: Final = (
    Column("system", "system"),
    Column("payload", "payload"),
    Column("rounds", "rounds"),
    Column("overhead_median_s", "overhead s, median", "{:.4f}".format),
    Column("overhead_min_s", "min", "{:.4f}".format),
    Column("overhead_max_s", "max", "{:.4f}".format),
    Column("wall_median_s", "wall s, median", "{:.4f}".format),
    Column("bytes_per_round", "bytes a round", "{:,.0f}".format),
)


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Stock's median overhead ÷ ours, for the lane (`ours`) and the fall-back; whole rounds, then halves."""
    median = {(row["system"], row["payload"]): row["overhead_median_s"] for row in rows}
    return {
        f"{peer}_over_{name}_{payload}": median[peer, payload] / median[system, payload]
        for peer in ("stock", "stock_training")
        for system, name in (("lane", "ours"), ("fallback", "fallback"))
        for payload in PARAMETERS
        if (peer, payload) in median and (system, payload) in median
    }


def _by_wall(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By the whole wall-clock of a round: ours ÷ the bare stream's, and NVFlare's ÷ ours."""
    wall = {(row["system"], row["payload"]): row["wall_median_s"] for row in rows}
    pairs = {
        f"{payload}{suffix}": ((system, payload), ("bare", payload), (NVFLARE, payload))
        for payload in PARAMETERS
        for system, suffix in (("lane", ""), ("masked", "_secagg"))
        if (system, payload) in wall
    }
    over_bare = {
        f"ours_over_bare_{name}": wall[ours] / wall[bare] for name, (ours, bare, _) in pairs.items() if bare in wall
    }
    return over_bare | {
        f"nvflare_over_ours_{name}": wall[peer] / wall[ours] for name, (ours, _, peer) in pairs.items() if peer in wall
    }


def _figures(run: Run) -> dict[str, float]:
    """The long run's seconds, and what the server weighed at round 20 or soon after it and before the last round."""
    figures = {f"seconds_{len(run.lines)}_rounds_10kb": run.seconds}
    weights = [weight for weight in run.weights if weight.rounds >= EARLY]
    for weight in (*weights[:1], *weights[-1:]):
        figures[f"server_memory_mb_round_{weight.rounds}"] = weight.resident_bytes / MB
        figures[f"server_database_mb_round_{weight.rounds}"] = weight.database_bytes / MB
    return figures


def _size(database: Path) -> int:
    """Bytes of an SQLite file and its write-ahead log."""
    return sum(file.stat().st_size for file in database.parent.glob(f"{database.name}*"))


@contextlib.contextmanager
def _federations(folder: Path, console: Console, peers: Mapping[str, Peer]) -> Iterator[Ours]:
    """Ours, with all federations up; all are stopped at the end, also if only some of them started."""
    sovfed = Ours(folder / "ours", NODES)
    everybody: list[Peer | Ours] = [sovfed, *peers.values()]
    with ThreadPoolExecutor(len(everybody)) as pool:
        try:
            with console.status("starting all federations"):
                for starting in [pool.submit(one.start) for one in everybody]:
                    starting.result()
            yield sovfed
        finally:
            for stopping in [pool.submit(one.stop) for one in everybody]:
                stopping.result()


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder that is removed unless the block raises an error; SIGTERM ends the block as Ctrl-C does."""
    folder = Path(tempfile.mkdtemp(prefix="sovfed-bench-"))
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield folder
    except Exception:
        raise  # the logs in the folder tell why
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        signal.signal(signal.SIGTERM, before)
