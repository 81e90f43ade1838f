"""`sovfed bench soak`: what grows in each process and each home as rounds and hours go by, and how fast.

Three institutions (task echo, 10 KB, secure aggregation, MLflow) under supervisors of their own, as in a deployment.
First one long run, then hours at rest, compressed: revocation lists are fetched every second instead of every minute.
A slope is that of a straight line through the samples behind the warm-up; institutions count by their mean.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ServiceError
from sovfed.server.runs import folders
from sovfed.simulations.audit.chaos.machine import AGENCY, COORDINATOR_NAME, SUPERVISOR, Machine, whole
from sovfed.simulations.benchmarks.process_tree import open_files, resident_bytes, threads
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish
from sovfed.simulations.benchmarks.rounds import workplace
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

INSTITUTIONS: Final = 3
ROUNDS, QUICK_ROUNDS = 5_000, 400
HOURS, QUICK_HOURS = 24.0, 2.0
HOUR_S: Final = 60.0  # that a compressed hour takes
SAMPLES: Final = 40
WARM_UP: Final = 0.25  # of the samples, that are not counted
AFTER_S: Final = 20.0  # in which the agency sends and draws what is left of a run
SETTLE_S, START_S, ROUND_S, POLL_S = 180.0, 300.0, 2.0, 0.5
AT_AGENCY: Final = (SUPERVISOR, "superlink", "registry", "executor", COORDINATOR_NAME)
AT_INSTITUTION: Final = (SUPERVISOR, "trainer", "gateway", "supernode")
KINDS: Final = ("memory_mb", "files", "threads", "disk_mb")


@dataclass(frozen=True)
class Usage:
    """What a process holds, or a home takes on disk; None is what it has not."""

    memory_mb: float | None = None
    files: float | None = None
    threads: float | None = None
    disk_mb: float | None = None


@dataclass(frozen=True)
class Sample:
    """Everybody's usage after so many rounds, or hours."""

    at: float
    usage: dict[str, Usage]


def run(
    quick: bool, files: Files, console: Console, *, minutes: float | None = None, hours: float | None = None
) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds.

    The run is stopped after so many `minutes`, however many rounds there were.
    """
    files.check()
    rounds, usual = (QUICK_ROUNDS, QUICK_HOURS) if quick else (ROUNDS, HOURS)
    hours = usual if hours is None else hours
    started, measured_in = time.monotonic(), conditions(quick=quick, rounds=rounds, hours=hours)
    with workplace() as folder, _federation(folder, rounds) as machine:
        with console.status(f"{rounds} rounds"):
            busy, done = _soak_rounds(machine, rounds, minutes)
        console.print(f"[green]✓[/] {done} of {rounds} rounds")
        with console.status(f"{hours:g} hours at rest, in {hours * HOUR_S / 60:g} min"):
            resting = _soak_hours(machine, hours)
    rows = [*_rows("1,000 rounds", busy, 1_000.0), *(_rows("hour at rest", resting, 1.0) if resting else ())]
    report = Report(
        title="What grows, by 1,000 rounds and by an hour at rest",
        columns=COLUMNS,
        rows=rows,
        ratios={},
        figures={**_worst(rows), "rounds_done": float(done), "seconds_total": time.monotonic() - started},
        conditions=measured_in,
        bars=Bars("memory_mb", "memory_mb", "memory_mb", "who", "per", "MB", log=False, only=("is", "process")),
    )
    return publish(report, console, files)


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


COLUMNS: Final = (
    Column("who", "process or home"),
    Column("per", "per"),
    Column("memory_first_mb", "MB at first", lambda value: "" if value is None else f"{value:.1f}"),
    Column("memory_mb", "MB", _signed),
    Column("files", "files", _signed),
    Column("threads", "threads", _signed),
    Column("disk_mb", "MB on disk", _signed),
)


@contextlib.contextmanager
def _federation(folder: Path, rounds: int) -> Iterator[Machine]:
    """Agency and institutions, each kept up by a supervisor of its own; whatever was started is ended."""
    members = [Institution(f"hospital-{number}", DataConfig()) for number in range(1, INSTITUTIONS + 1)]
    config = compose([
        "task=echo", "task.parameters=2500", "privacy.colluders=0", "server.lane=stream",
        f"rounds={rounds}", f"client.crl_refresh_s={HOUR_S / 60}",
        f"server.min_cohort={INSTITUTIONS}", f"server.start_cohort={INSTITUTIONS}",
    ]).config  # fmt: skip
    largest = 2.0 * rounds  # the echo's values grow by about one a round
    policy = dataclasses.replace(POLICY, max_rounds=rounds, max_sums_per_run=2 * rounds, max_model_value=largest)
    federation = LocalFederation(folder, members, config, policy)
    with whole(federation, SETTLE_S) as machine:
        yield machine


def _soak_rounds(machine: Machine, rounds: int, minutes: float | None) -> tuple[list[Sample], int]:
    """Samples of a run of so many rounds, taken while it goes on, and its last round; it is stopped after `minutes`."""
    federation, name, samples = machine.federation, "soak", list[Sample]()
    federation.start_run(name, federation.config)
    started, most_s = time.monotonic(), 60 * minutes if minutes else START_S + ROUND_S * rounds
    while (run := folders.read_run(federation.home, name))["status"] in folders.ACTIVE:
        done, gone = run["rounds_done"], (time.monotonic() - started) / most_s
        if len(samples) / SAMPLES < (gone if minutes else done / rounds) and 0 < done < rounds:
            samples.append(Sample(done, _usage(machine)))
        if gone > 1 and minutes:
            folders.stop_run(federation.control, federation.home, name)
        elif gone > 1:
            raise ServiceError(f"{done} of {rounds} rounds; logs in {federation.home / 'logs'}")
        time.sleep(POLL_S)
    if run["status"] not in ("finished", "stopped" if minutes else "finished"):
        raise ServiceError(f"the run {run['status']}: {run['reason']}; logs in {federation.home / 'logs'}")
    return samples, run["rounds_done"]


def _soak_hours(machine: Machine, hours: float) -> list[Sample]:
    """Samples of a federation in which nothing runs any more."""
    if not hours:
        return []
    time.sleep(AFTER_S)
    started, samples = time.monotonic(), list[Sample]()
    for number in range(SAMPLES):
        time.sleep(max(0.0, started + hours * HOUR_S * number / SAMPLES - time.monotonic()))
        samples.append(Sample((time.monotonic() - started) / HOUR_S, _usage(machine)))
    return samples


def _usage(machine: Machine) -> dict[str, Usage]:
    """What everybody uses now, by name; the institutions' mean."""
    members = [member.name for member in machine.federation.institutions]
    processes = {f"agency's {name}": [machine.pid(AGENCY, name)] for name in AT_AGENCY}
    processes |= {name: [machine.pid(member, name) for member in members] for name in AT_INSTITUTION}
    living = {name: list(filter(None, pids)) for name, pids in processes.items()}
    homes = {"agency's home": [machine.home(AGENCY)], "institution's home": [machine.home(name) for name in members]}
    usage = {
        name: Usage(_mean(resident_bytes, pids) / 1e6, _mean(open_files, pids), _mean(threads, pids))
        for name, pids in living.items() if pids
    }  # fmt: skip
    return usage | {name: Usage(disk_mb=_mean(_disk_bytes, paths) / 1e6) for name, paths in homes.items()}


def _mean(of: Callable[[Any], float], whose: Sequence[Any]) -> float:
    return statistics.fmean(map(of, whose))


def _disk_bytes(folder: Path) -> int:
    """What the files below `folder` take; those that vanish meanwhile take nothing."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
    return total


def slope(points: Sequence[tuple[float, float]]) -> float:
    """That of the straight line through the points by least squares; 0 of fewer than two."""
    if len({at for at, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def _rows(per: str, samples: Sequence[Sample], unit: float) -> list[dict[str, Any]]:
    """A row for everybody who was there all the time: slopes per `unit`, without the warm-up."""
    counted = samples[int(WARM_UP * len(samples)) :]
    if not counted:
        raise ServiceError("there is no sample: the run was over at once")
    names = [name for name in counted[0].usage if all(name in sample.usage for sample in counted)]
    return [
        {
            "who": name, "is": "home" if name.endswith("home") else "process", "per": per,
            "memory_first_mb": counted[0].usage[name].memory_mb,
            **{kind: _growth(counted, name, kind, unit) for kind in KINDS},
        }
        for name in names
    ]  # fmt: skip


def _growth(samples: Sequence[Sample], name: str, kind: str, unit: float) -> float | None:
    values = [(sample.at, getattr(sample.usage[name], kind)) for sample in samples]
    return None if values[0][1] is None else unit * slope(values)


def _worst(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The steepest slope of each kind in each phase."""
    phases = {row["per"]: row["per"].replace(",", "").replace(" ", "_") for row in rows}
    return {
        f"{kind}_per_{label}_worst": max(row[kind] for row in rows if row["per"] == per and row[kind] is not None)
        for per, label in phases.items() for kind in KINDS
    }  # fmt: skip
