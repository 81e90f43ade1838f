"""`sovfed bench load`: what an agency costs by the number of its institutions, and so what 1,000 and 10,000 would.

A real agency (superlink, registry, executor, a coordinator) on this machine, and thin institutions (`thin.py`) in this
process, whose number grows. At each size: what the agency takes while nothing runs, then one run of everybody (task
echo, 10 KB). What is measured is of the agency's processes alone; seconds are not, since both share the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.secagg.shares import MAX_HOLDERS
from sovfed.server.runs import folders
from sovfed.server.runs.coordinators import coordinator_of
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.benchmarks.process_tree import cpu_seconds, proportional_bytes
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish
from sovfed.simulations.benchmarks.rounds import workplace
from sovfed.simulations.benchmarks.thin import ThinInstitution
from sovfed.simulations.deployment import TERMS, Institution, LocalFederation

if TYPE_CHECKING:
    from rich.console import Console

SIZES: Final = (100, 300, 1000)
QUICK_SIZES: Final = (30, 100)
MODELLED: Final = (1000, 10_000)
ROUNDS, WARM_UP = 10, 2
SETTLE_S, IDLE_S, POLL_S = 5.0, 20.0, 0.05
RUN_S: Final = 1800.0
AGENCY: Final = ("superlink", "registry", "executor")


def run(quick: bool, masks: bool, sizes: Sequence[int], files: Files, console: Console) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds."""
    files.check()
    sizes = sorted(sizes or (QUICK_SIZES if quick else SIZES))
    if masks and sizes[-1] > MAX_HOLDERS:
        raise ConfigError(f"{sizes[-1]} institutions; one secure sum takes at most {MAX_HOLDERS}")
    logging.getLogger("flwr").setLevel(logging.WARNING)  # it tells of every message
    started, measured_in, rows = time.monotonic(), conditions(quick=quick, masks=masks), list[dict[str, Any]]()
    with workplace() as folder, _federation(folder, sizes[-1], masks) as federation, contextlib.ExitStack() as thin:
        for size in sizes:
            with console.status(f"{size} institutions sign on"):
                for member in federation.institutions[len(rows) and rows[-1]["institutions"] : size]:
                    home, limit = federation.client_home(member.name), federation.config.server.max_message_bytes
                    thin.enter_context(ThinInstitution(home, TERMS, limit))
            rows.append(_measure(federation, size))
            console.print(
                f"[green]✓[/] {size} institutions: {rows[-1]['joined']} in round 1, "
                f"{rows[-1]['superlink_cpu_s']:.2f} s of the superlink each"
            )
    report = Report(
        title="An agency by the number of its institutions",
        columns=COLUMNS,
        rows=rows,
        ratios={"joined": min(row["joined"] / row["institutions"] for row in rows)},
        figures={"seconds_total": time.monotonic() - started, **_model(rows)},
        conditions=measured_in,
        bars=Bars("agency_mb", "agency_mb", "agency_mb", "institutions", "title", "MB", log=False),
    )
    return publish(report, console, files)


COLUMNS: Final = (
    Column("institutions", "institutions"),
    Column("joined", "in round 1"),
    Column("idle_millicores", "idle millicores", "{:.0f}".format),
    Column("superlink_cpu_s", "superlink s each", "{:.3f}".format),
    Column("registry_cpu_s", "registry s each", "{:.3f}".format),
    Column("coordinator_ms", "coordinator ms a round", "{:.0f}".format),
    Column("registry_ms", "registry ms a round", "{:.0f}".format),
    Column("round_mb", "MB a round", "{:.2f}".format),
    Column("superlink_mb", "superlink MB", "{:.0f}".format),
    Column("registry_mb", "registry MB", "{:.0f}".format),
    Column("coordinator_mb", "coordinator MB", "{:.0f}".format),
    Column("database_mb", "database MB", "{:.1f}".format),
)
MODEL: Final = (
    "idle_millicores", "opening_cpu_s", "coordinator_ms", "registry_ms", "round_mb", "agency_mb", "database_mb",
)  # fmt: skip


@contextlib.contextmanager
def _federation(folder: Path, size: int, masks: bool) -> Iterator[LocalFederation]:
    """An agency that is up, and `size` institutions that are enrolled; whatever was started is ended."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    members = [Institution(f"thin-{number}", DataConfig()) for number in range(1, size + 1)]
    settings = ["task=echo", "server.min_cohort=3", "privacy.colluders=0", *(() if masks else ("secagg=none",))]
    federation = LocalFederation(folder, members, compose(settings).config)
    try:
        federation.build_agency()
        federation.start_agency()
        federation.enrol()
        yield federation
    finally:
        federation.stop()


def _measure(federation: LocalFederation, size: int) -> dict[str, Any]:
    """What the agency takes at rest and for a run of all `size` institutions."""
    pids = {name: [federation.pid("agency", name)] for name in AGENCY}
    time.sleep(SETTLE_S)
    before, clock = _spent(pids), time.monotonic()
    time.sleep(IDLE_S)
    idle = 1000 * (sum(_spent(pids).values()) - sum(before.values())) / (time.monotonic() - clock)
    name, before = f"run-{size}", _spent(pids)
    _start(federation, name, size)
    _await(federation, name, rounds=1)
    coordinator = [coordinator_of(folders.run_folder(federation.home, name))]
    opened, begun = _spent(pids), cpu_seconds(coordinator)
    _await(federation, name, rounds=ROUNDS - 1)
    spent, worked = _spent(pids), cpu_seconds(coordinator) - begun
    megabytes = {
        f"{kind}_mb": proportional_bytes(pid) / 1e6 for kind, pid in {**pids, "coordinator": coordinator}.items()
    }
    _await(federation, name, rounds=ROUNDS, status="finished")
    lines = read_rounds(folders.run_folder(federation.home, name))
    return {
        "institutions": size,
        "title": "agency",
        "joined": len(lines[0]["participants"]),
        "idle_millicores": idle,
        "opening_cpu_s": sum(opened.values()) - sum(before.values()),
        "superlink_cpu_s": (opened["superlink"] - before["superlink"]) / size,
        "registry_cpu_s": (opened["registry"] - before["registry"]) / size,
        "coordinator_ms": 1000 * worked / (ROUNDS - 2),
        "registry_ms": 1000 * (spent["registry"] - opened["registry"]) / (ROUNDS - 2),
        "round_ms": 1000 * statistics.median(line["seconds"] for line in lines[WARM_UP:]),
        "round_mb": statistics.median(line["bytes_up"] + line["bytes_down"] for line in lines) / 1e6,
        **megabytes,
        "agency_mb": sum(megabytes.values()),
        "database_mb": sum(path.stat().st_size for path in federation.home.glob("*/*.db*")) / 1e6,
    }


def _spent(pids: dict[str, list[int]]) -> dict[str, float]:
    """Processor seconds of each of the agency's processes so far; coordinators count to nobody."""
    return {name: cpu_seconds(pid, children=False) for name, pid in pids.items()}


def _start(federation: LocalFederation, name: str, size: int) -> None:
    server = dataclasses.replace(federation.config.server, start_cohort=size, node_wait_s=RUN_S)
    config = dataclasses.replace(federation.config, rounds=ROUNDS, server=server)
    folders.start_run(federation.control, federation.home, name, config, resume=False)


def _await(federation: LocalFederation, name: str, rounds: int, status: str = "") -> None:
    """Wait until the run has so many rounds, and `status`. Raises ServiceError if it ends badly, or takes too long."""
    deadline, folder = time.monotonic() + RUN_S, folders.run_folder(federation.home, name)
    while True:
        state = folders.read_run(federation.home, name)
        if len(read_rounds(folder)) >= rounds and status in ("", state["status"]):
            return
        if state["status"] in ("failed", "stopped", "interrupted") or time.monotonic() > deadline:
            raise ServiceError(f"run {name} {state['status']}: {state['reason']}; logs in {federation.home / 'logs'}")
        time.sleep(POLL_S)


def _model(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What each institution more costs, by a line through the rows (least squares), and where it leads.

    Nothing of one row alone: what an agency costs without institutions is not seen there.
    """
    if len(rows) == 1:
        return {}
    figures = dict[str, float]()
    for key in MODEL:
        slope, base = np.polyfit([row["institutions"] for row in rows], [row[key] for row in rows], 1).tolist()
        figures |= {f"{key}_each": slope} | {f"{key}_of_{size}": base + slope * size for size in MODELLED}
    return figures
