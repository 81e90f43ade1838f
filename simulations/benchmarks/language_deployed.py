"""The model of `bench language` by real processes: ministries and their agency on this machine, and secure sums.

Each ministry has its certificate, ledger, gateway, SuperNode and trainer; the agency's registry, superlink and
coordinator are those of every run. What a stranger could reach is what is on the lane: masked sums of 16 bits.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.compose import compose
from sovfed.federation.config import Config, DataConfig
from sovfed.federation.errors import ServiceError
from sovfed.federation.tasks.taskfile import to_text
from sovfed.federation.tasks.tokenizer import read_tokenizer
from sovfed.server.cli.run import watch
from sovfed.server.runs import folders
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.benchmarks.language import (
    CENTRAL,
    COLUMNS,
    FITTED,
    PLAN,
    RINGS,
    SYMBOLS,
    TOKENIZER,
    Bench,
    Size,
    decoder_task,
    prepared,
    train_pooled,
)
from sovfed.simulations.benchmarks.process_tree import cpu_seconds
from sovfed.simulations.benchmarks.report import Files, Report, conditions, publish
from sovfed.simulations.benchmarks.rounds import workplace
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation

if TYPE_CHECKING:
    from rich.console import Console

    from sovfed.federation.tasks.declared import DeclaredTask

TASK, RUN = "law.yaml", "law"
ROUNDS: Final = 1_800
SETTINGS: Final = {**CENTRAL, **RINGS["16 bits"]}
LARGER: Final = Size(context=512, width=384, blocks=6, heads=6)  # 13.8 million values
TRAINED: Final = re.compile(r"round (\d+): \d+ records, ([\d.]+) s$", re.MULTILINE)  # in a trainer's log
LEAST, COUNTED = 3, 2  # institutions of a secure sum; rounds
LOCAL: Final = {
    **PLAN, "strategy": "fedavg", **FITTED, "task.batch_size": 8, "task.local_steps": 2, "server.min_cohort": LEAST,
    "server.start_cohort": LEAST,
}  # fmt: skip


def run(
    *, data: Path, rounds: int | None, seeds: Sequence[int], files: Files, console: Console, symbols: int = SYMBOLS,
    keep: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train pooled here and federated by real processes, once for each seed, and publish the report.

    All held-out text is the test. The worst seed counts in the ratios, so that they hold for each.
    """
    files.check()
    start = time.process_time()
    with workplace() as folder:
        task, sites = prepared(data, folder, sys.maxsize, symbols)
        bench = Bench(task, sites, rounds or ROUNDS, console, [], keep)
        lines = [bench.once(f"deployed, seed {seed}", SETTINGS, partial(_seed, bench, folder, seed)) for seed in seeds]
    worst = {
        name: max(line[name] for line in lines) for name in ("federated_bpb", "pooled_bpb", "federated_over_pooled")
    }
    figures = {
        f"{name}_seed_{seed}": value for seed, line in zip(seeds, lines, strict=True) for name, value in line.items()
    }
    figures["cpu_s"] = time.process_time() - start
    title = f"A language model by {len(sites)} institutions of real processes: federated against pooled"
    return publish(Report(title, COLUMNS, bench.rows, worst, figures, conditions()), console, files)


def _seed(bench: Bench, stores: Path, seed: int) -> dict[str, float]:
    """What pooled and deployed training come to from the same start."""
    pooled = train_pooled(bench, seed)
    got = deployed(bench.task, stores, bench.sites, SETTINGS, bench.rounds, seed)
    bench.tell(f"deployed, seed {seed}", bench.rounds, 1, got.bits_per_byte, got.rounding, got.cpu_s)
    theirs = pooled.metrics["bits_per_byte"]
    return {
        "federated_bpb": got.bits_per_byte, "pooled_bpb": theirs, "federated_over_pooled": got.bits_per_byte / theirs,
        "wall_s": got.wall_s, "slowest_training_s": sum(got.slowest_s.values()),
        "missed": 1 - got.answered / (bench.rounds * len(bench.sites)),
    }  # fmt: skip


def overhead(
    *, data: Path, files: Files, console: Console, symbols: int = SYMBOLS, size: Size = LARGER
) -> dict[str, Any]:
    """What a round costs beyond the slowest ministry's compute, of a larger decoder at three ministries; the report.

    Several local steps a round, masked sums of 16 bits. The first round and the last, which evaluates, are not counted.
    """
    files.check()
    with workplace() as folder:
        _, sites = prepared(data, folder, sys.maxsize, symbols)
        tokenizer = read_tokenizer(folder / TOKENIZER)
        task = decoder_task("law", tokenizer.symbols, tokenizer.sha256, size)
        got = deployed(task, folder, list(sites)[:LEAST], LOCAL, COUNTED + 2, seed=0)
    counted = got.lines[1:-1]
    seconds, computed = sum(line["seconds"] for line in counted), sum(got.slowest_s[line["round"]] for line in counted)
    ratios = {"overhead_over_compute": seconds / computed - 1}
    figures = {"parameters": task.parameters, "compute_s_a_round": computed / COUNTED, "cpu_s": got.cpu_s}
    title = f"A round of {task.parameters:,} values, {LEAST} institutions"
    report = Report(title, COLUMNS, [], ratios, figures, conditions())
    return publish(report, console, files)


@dataclasses.dataclass(frozen=True)
class Deployed:
    """What came of a run: its metric, and processor and wall seconds of all processes from its start to its end."""

    bits_per_byte: float
    rounding: float
    cpu_s: float
    wall_s: float
    lines: list[dict[str, Any]]  # what the coordinator wrote of each round
    slowest_s: dict[int, float]  # by round, of the slowest ministry's training

    @property
    def answered(self) -> int:
        """Updates that are in the sums of all rounds: institutions, were none late or left out, times rounds."""
        return sum(len(line["participants"]) for line in self.lines)


def deployed(
    task: DeclaredTask, stores: Path, sites: Iterable[str], settings: Mapping[str, Any], rounds: int, seed: int
) -> Deployed:
    """Train `task`, a task as a file, at `sites`, each on its store in `stores`. Raises ServiceError if that fails."""
    if task.file is None:
        raise ServiceError(f"task '{task.name}' has no file")
    (stores / TASK).write_text(to_text(task.file))
    config = _config(stores / TASK, settings, rounds, seed)
    members = [Institution(site, DataConfig(source="tokens", path=str(stores), site=site)) for site in sites]
    policy = dataclasses.replace(
        POLICY, max_rounds=rounds, max_sums_per_run=2 * rounds, max_sums_per_day=4 * rounds,
        min_batch_size=config.task.batch_size,
    )  # fmt: skip
    with LocalFederation(stores / f"federation-{seed}", members, config, policy) as federation:
        before, start = cpu_seconds([os.getpid()]), time.monotonic()
        federation.start_run(RUN)
        ended = watch(federation.home, RUN)
        if ended["status"] != "finished":
            raise ServiceError(f"the run {ended['status']}: {ended['reason']}")
        seconds = cpu_seconds([os.getpid()]) - before, time.monotonic() - start
        homes = [federation.client_home(member.name) for member in members]
        return _figures(federation.home, slowest_seconds(homes), *seconds)


def slowest_seconds(homes: Iterable[Path]) -> dict[int, float]:
    """By round, how long the slowest of `homes` trained, by their own logs: the agency is told powers of two."""
    slowest = dict[int, float]()
    for home in homes:
        for number, seconds in TRAINED.findall((home / "logs" / "trainer.log").read_text()):
            slowest[int(number)] = max(slowest.get(int(number), 0.0), float(seconds))
    return slowest


def _figures(home: Path, slowest_s: dict[int, float], cpu_s: float, wall_s: float) -> Deployed:
    lines = read_rounds(folders.run_folder(home, RUN))
    metrics = (folders.read_summary(home, RUN) or {})["metrics"]
    rounding = sum(line["ring_error"] for line in lines) / len(lines)
    return Deployed(metrics["bits_per_byte"], rounding, cpu_s, wall_s, lines, slowest_s)


def _config(task: Path, settings: Mapping[str, Any], rounds: int, seed: int) -> Config:
    chosen = {**settings, "evaluate_every": rounds, "rounds": rounds, "seed": seed}
    return compose([f"task={task}", *(f"{name}={value}" for name, value in chosen.items())]).config
