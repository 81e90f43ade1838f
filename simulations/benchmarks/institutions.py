"""`sovfed bench institutions`: who is there when a run starts, how long that takes, and what institutions cost at rest.

One federation of real processes at defaults grows on this machine, to 32 institutions (task echo, 10 KB, secure
aggregation). At each size: the processor time that an institution takes while nothing runs, then two runs, one right
after the other, that ask for everybody (`server.start_cohort`). Supervisors are threads of this process, so its own
time counts to the institutions', and their share of the agency's does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.home.folder import NODE_ID
from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ServiceError
from sovfed.server.runs import folders
from sovfed.server.runs.coordinators import coordinator_of
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.benchmarks.process_tree import cpu_seconds, proportional_bytes
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish
from sovfed.simulations.benchmarks.rounds import workplace
from sovfed.simulations.deployment import Institution, LocalFederation

if TYPE_CHECKING:
    from rich.console import Console

SIZES: Final = (8, 16, 32)
QUICK_SIZES: Final = (32,)
MOST: Final = 32
RUNS, ROUNDS = 2, 30
WARM_UP: Final = 10  # rounds that are not counted
TOGETHER: Final = 4  # institutions that start at the same time
SIGN_ON_S, RUN_S, POLL_S = 180.0, 420.0, 0.05
SETTLE_S, IDLE_S = 15.0, 20.0  # after which an institution is at rest, and how long it is watched
AGENCY: Final = ("superlink", "registry", "executor")
PROCESSES: Final = ("trainer", "supernode", "gateway")  # of an institution; supervisors are threads here


def run(quick: bool, files: Files, console: Console) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds."""
    files.check()
    started, measured_in, rows = time.monotonic(), conditions(quick=quick), list[dict[str, Any]]()
    with workplace() as folder, _federation(folder, MOST) as federation:
        for size in QUICK_SIZES if quick else SIZES:
            with console.status(f"starting {size} institutions"):
                up_s = _grow(federation, size)
            with console.status(f"{size} institutions at rest"):
                at_rest = _idle(federation, size)
            for number in range(1, RUNS + 1):
                row = {**_run(federation, size, f"run-{size}-{number}"), **at_rest, "up_s": up_s}
                console.print(
                    f"[green]✓[/] {size} institutions, run {number}: {row['joined']} in round 1 after "
                    f"{row['first_round_s']:.1f} s"
                )
                rows.append(row)
    largest = [row for row in rows if row["institutions"] == MOST]
    report = Report(
        title="Institutions of one federation",
        columns=COLUMNS,
        rows=rows,
        ratios={
            "joined_of_32": min(row["joined"] for row in largest) / MOST,
            "first_round_s_32": max(row["first_round_s"] for row in largest),
            "idle_millicores": largest[0]["idle_millicores"],
        },
        figures={"seconds_total": time.monotonic() - started},
        conditions=measured_in,
        bars=Bars(
            "first_round_s", "first_round_s", "first_round_s", "institutions", "run", "first round, s", log=False
        ),
    )
    return publish(report, console, files)


COLUMNS: Final = (
    Column("institutions", "institutions"),
    Column("run", "run"),
    Column("joined", "in round 1"),
    Column("first_round_s", "first round s", "{:.1f}".format),
    Column("superlink_cpu_s", "superlink s", "{:.3f}".format),
    Column("node_cpu_s", "node s", "{:.3f}".format),
    Column("round_ms", "round ms", "{:.0f}".format),
    Column("round_cpu_ms", "of CPU", "{:.0f}".format),
    Column("round_coordinator_ms", "coordinator", "{:.0f}".format),
    Column("round_registry_ms", "registry", "{:.0f}".format),
    Column("round_trainer_ms", "trainers", "{:.0f}".format),
    Column("round_gateway_ms", "gateways", "{:.0f}".format),
    Column("idle_millicores", "idle millicores", "{:.1f}".format),
    Column("idle_superlink", "of it superlink", "{:.1f}".format),
    Column("idle_supervisor", "supervisor", "{:.1f}".format),
    Column("idle_trainer", "trainer", "{:.1f}".format),
    Column("idle_supernode", "supernode", "{:.1f}".format),
    Column("idle_gateway", "gateway", "{:.1f}".format),
    Column("memory_trainer_mb", "trainer MB", "{:.0f}".format),
    Column("memory_supernode_mb", "supernode MB", "{:.0f}".format),
    Column("memory_gateway_mb", "gateway MB", "{:.0f}".format),
    Column("memory_mb", "PSS MB", "{:.0f}".format),
)


@contextlib.contextmanager
def _federation(folder: Path, size: int) -> Iterator[LocalFederation]:
    """An agency that is up, and `size` institutions that are enrolled; whatever was started is ended."""
    places = [Institution(f"hospital-{number}", DataConfig()) for number in range(1, size + 1)]
    config = compose(["task=echo", "server.min_cohort=3", "privacy.colluders=0"]).config
    federation = LocalFederation(folder, places, config)
    try:
        federation.build_agency()
        federation.start_agency()
        federation.enrol()
        yield federation
    finally:
        federation.stop()


def _grow(federation: LocalFederation, size: int) -> float:
    """Start institutions until there are `size` and all have signed on; how long that took."""
    started = time.monotonic()
    names = [member.name for member in federation.institutions[:size]]
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(federation.start_institution, [name for name in names if name not in federation.supervisors]))
    deadline = time.monotonic() + SIGN_ON_S
    while missing := [name for name in names if not (federation.client_home(name) / NODE_ID).exists()]:
        if time.monotonic() > deadline:
            raise ServiceError(f"not signed on after {SIGN_ON_S:g} s: {', '.join(missing)}")
        time.sleep(POLL_S)
    return time.monotonic() - started


def _idle(federation: LocalFederation, size: int) -> dict[str, float]:
    """Millicores that each of `size` institutions takes at rest, with its share of the agency's; memory of one."""
    time.sleep(SETTLE_S)
    kinds = _kinds(federation)
    before, clock = _spent(kinds), time.monotonic()
    time.sleep(IDLE_S)
    seconds, after = time.monotonic() - clock, _spent(kinds)
    millicores = {f"idle_{kind}": 1000 * (after[kind] - before[kind]) / seconds / size for kind in kinds}
    memory = {f"memory_{kind}_mb": proportional_bytes(kinds[kind]) / size / 1e6 for kind in PROCESSES}
    return {
        "idle_millicores": sum(millicores.values()),
        **millicores,
        **memory,
        "memory_mb": sum(memory.values()),
    }


def _kinds(federation: LocalFederation) -> dict[str, list[int]]:
    """The processes of the agency and of all institutions, by kind."""
    return {
        **{name: [federation.pid("agency", name)] for name in AGENCY},
        **{name: _processes(federation, name) for name in PROCESSES},
        "supervisor": [os.getpid()],
    }


def _processes(federation: LocalFederation, kind: str) -> list[int]:
    return [federation.pid(owner, kind) for owner in federation.supervisors if owner != "agency"]


def _spent(kinds: dict[str, list[int]]) -> dict[str, float]:
    """Processor seconds of each kind of process so far; of this process, without its children."""
    times = os.times()
    own = {"supervisor": times.user + times.system}
    return {kind: cpu_seconds(pids) for kind, pids in kinds.items() if kind != "supervisor"} | own


def _run(federation: LocalFederation, size: int, name: str) -> dict[str, Any]:
    """A run that asks for all `size` institutions: who was in round 1 and when that was over, from the start."""
    config = federation.config
    server = dataclasses.replace(config.server, start_cohort=size)
    superlink, nodes = [federation.pid("agency", "superlink")], _processes(federation, "supernode")
    before = cpu_seconds(superlink), cpu_seconds(nodes)
    started = time.monotonic()
    folders.start_run(
        federation.control, federation.home, name, dataclasses.replace(config, rounds=ROUNDS, server=server),
        resume=False,
    )  # fmt: skip
    folder = folders.run_folder(federation.home, name)
    while not read_rounds(folder):
        _check(federation, name, started)
    first_s, after = time.monotonic() - started, (cpu_seconds(superlink), cpu_seconds(nodes))
    spent = _round_ms(federation, folder, name, started)
    while folders.read_run(federation.home, name)["status"] != "finished":
        _check(federation, name, started)
    lines = read_rounds(folder)
    return {
        "institutions": size,
        "run": name.rpartition("-")[2],
        "joined": len(lines[0]["participants"]),
        "joined_last": len(lines[-1]["participants"]),
        "first_round_s": first_s,
        "superlink_cpu_s": (after[0] - before[0]) / size,
        "node_cpu_s": (after[1] - before[1]) / size,
        "round_ms": 1000 * statistics.median(line["seconds"] for line in lines[WARM_UP:]),
        **{f"round_{kind}_ms": spent_ms for kind, spent_ms in spent.items()},
        "round_cpu_ms": sum(spent.values()),
    }


def _round_ms(federation: LocalFederation, folder: Path, name: str, started: float) -> dict[str, float]:
    """Processor milliseconds of a round by kind of process, all institutions' together, from `WARM_UP` on."""
    kinds = {**_kinds(federation), "coordinator": [coordinator_of(folder)]}
    measured = list[tuple[int, dict[str, float]]]()
    for least in (WARM_UP, ROUNDS - 1):
        while (count := len(read_rounds(folder))) < least:
            _check(federation, name, started)
        measured.append((count, _spent(kinds)))
    (first, before), (last, after) = measured
    return {kind: 1000 * (after[kind] - before[kind]) / max(1, last - first) for kind in kinds}


def _check(federation: LocalFederation, name: str, started: float) -> None:
    """Wait a moment. Raises ServiceError if the run has ended badly, or takes too long."""
    time.sleep(POLL_S)
    state = folders.read_run(federation.home, name)
    if state["status"] in ("failed", "stopped", "interrupted"):
        raise ServiceError(f"run {name} {state['status']}: {state['reason']}; logs in {federation.home / 'logs'}")
    if time.monotonic() - started > RUN_S:
        raise ServiceError(f"run {name} has not finished after {RUN_S:g} s; logs in {federation.home / 'logs'}")
