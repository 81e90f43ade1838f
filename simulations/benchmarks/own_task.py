"""`sovfed bench own-task`: what it costs that a task is anybody's own, and not one of ours.

    memory_over_columns   what a process takes on to load a large CSV table and train on it, over the columns' bytes as
                          they are stored, less one batch; by the resident set's high-water mark (`own_tasks/memory.py`)
    images_gb             the same of 10,000 images of 224 × 224 in a folder, in GB: as decoded bytes they are 1.5
    csv_over_pandas_cpu   CPU of our CSV connector's load over `pandas.read_csv` of the same columns, of a table as
                          hospitals export it; `csv_numbers_over_pandas_cpu` of one of numbers alone. pandas leaves
                          words and days as text, which no model takes; ours checks, codes and splits
    csv_over_typed_pandas_cpu, csv_numbers_over_typed_pandas_cpu
                          the same over `pandas.read_csv` that is told what a model takes: numbers as float32, words as
                          categories and truth values, days as dates; so what each cell is, not which range it is in
    csv_over_arrow_cpu, csv_numbers_over_arrow_cpu
                          the same over pyarrow's reader, which ours is made of, told numbers and days
    csv_over_checked_pandas_cpu, csv_numbers_over_checked_pandas_cpu
                          the same over pandas and a program for what a task needs: the columns as float32, words and
                          dates as codes and days, each cell within its bounds
    inprocess_over_ray    CPU of a client update in Flower's own simulation (Ray, a ClientApp as in its tutorials,
    vectorised_over_ray   torch's AdamW) over ours, of a task with two inputs by name and a dict of outputs, which a
                          package outside brings: the same records, model and steps; each engine in its own process
    digits_over_bare      CPU of a client update of the bundled `digits` over a short loop of torch's own
    digits_vs_before      with --before FOLDER, over that of the sovfed in FOLDER: for a checkout made by
                          `git worktree add FOLDER cec5959` that is FOLDER/.src. One benchmark cannot hold old code, so
                          without the option it is left out

Whatever is compared takes turns, the two sides of `digits_*` in processes that are asked by turns; ratios of CPU are
medians over neighbouring turns. Run the walls on a machine that does nothing else.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ServiceError
from sovfed.simulations.benchmarks.own_tasks import child, environment, steps
from sovfed.simulations.benchmarks.report import Column, Files, Report, conditions, publish

if TYPE_CHECKING:
    from rich.console import Console

GB: Final = 1e9
MB: Final = 1e6


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    table: int = 500_000  # rows
    images: int = 10_000
    csv: int = 60_000  # rows
    csv_turns: int = 15
    institutions: int = 50
    rounds: tuple[tuple[str, int], ...] = (("ray", 8), ("inprocess", 20), ("vectorised", 100))
    turns: int = 3  # of the engines
    processes: int = 5  # of the steps
    asks: int = 60  # of each process


FULL: Final = Size()
PEERS: Final = ("pandas", "typed_pandas", "arrow", "checked_pandas")
PARTS: Final = ("memory", "csv", "engines", "steps")
# The most, or with ">=" the least, that a figure may be. Their source is what was promised of open tasks, not what came
# out; whoever misses one is told so.
BARS: Final = {
    "memory_over_columns": ("<=", 1.3), "images_gb": ("<=", 2.0), "csv_over_pandas_cpu": ("<=", 1.0),
    "csv_numbers_over_pandas_cpu": ("<=", 1.0), "csv_over_typed_pandas_cpu": ("<=", 1.0),
    "csv_numbers_over_typed_pandas_cpu": ("<=", 1.0), "inprocess_over_ray": (">=", 5.0),
    "vectorised_over_ray": (">=", 40.0), "digits_vs_before": ("<=", 1.05),
}  # fmt: skip
QUICK: Final = Size(table=400_000, csv_turns=7, rounds=(("ray", 4), ("inprocess", 10), ("vectorised", 40)), turns=2,
                    processes=2, asks=40)  # fmt: skip
COLUMNS: Final = (
    Column("what", "what"),
    Column("system", "system"),
    Column("value", "value", "{:,.4g}".format),
    Column("unit", "unit"),
)


def run(
    quick: bool, before: Path | None, *,
    files: Files, console: Console, size: Size | None = None, parts: Sequence[str] = PARTS,
) -> dict[str, Any]:  # fmt: skip
    """Measure `parts`, print, write the files that are asked for; what the JSON file holds. Raises ServiceError."""
    files.check()
    started, size = time.monotonic(), size or (QUICK if quick else FULL)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    for part, measure in (("memory", _memory), ("csv", _csv), ("engines", _engines)):
        if part not in parts:
            continue
        found_rows, found_ratios, found_figures = measure(size)
        rows += found_rows
        ratios |= found_ratios
        figures |= found_figures
        console.print(f"[green]✓[/] {', '.join(f'{name} {value:.3g}' for name, value in found_ratios.items())}")
    references = (("digits_over_bare", "bare"), *([("digits_vs_before", str(before))] if before else []))
    for name, reference in references if "steps" in parts else ():
        ratios[name], steps_rows = _steps(reference, size)
        rows += steps_rows
        console.print(f"[green]✓[/] {name} {ratios[name]:.3g}")
    figures["seconds_total"] = time.monotonic() - started
    missed = ", ".join(name for name, value in (ratios | figures).items() if not fits(name, value))
    report = Report("A task of your own", COLUMNS, rows, ratios, figures, conditions(quick=quick, missed=missed))
    document = publish(report, console, files)
    console.print(_against_bars(ratios | figures))
    return document


def fits(name: str, value: float) -> bool:
    """Whether a figure keeps its bar; what has none always does."""
    sign, bar = BARS.get(name, ("<=", math.inf))
    return value <= bar if sign == "<=" else value >= bar


def _against_bars(figures: dict[str, float]) -> Any:
    """A table of each figure that has a bar, beside it."""
    from rich.table import Table

    table = Table(title="Measured, and what it should be")
    for heading in ("figure", "measured", "bar", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "") else "right")
    for name, (sign, bar) in BARS.items():
        if name in figures:
            verdict = "[green]holds[/]" if fits(name, figures[name]) else "[red]missed[/]"
            table.add_row(name, f"{figures[name]:.3g}", f"{'at most' if sign == '<=' else 'at least'} {bar:g}", verdict)
    return table


Measured = tuple[list[dict[str, Any]], dict[str, float], dict[str, float]]


def _row(what: str, system: str, value: float, unit: str) -> dict[str, Any]:
    return {"what": what, "system": system, "value": value, "unit": unit}


def _memory(size: Size) -> Measured:
    measured = {}
    for kind, count in (("table", size.table), ("images", size.images)):
        with tempfile.TemporaryDirectory(prefix="sovfed-bench-") as folder:
            measured[kind] = child("memory", kind, folder, str(count))
    rows = [
        _row(f"{kind}: {key}", f"{values['records']:,.0f} records", values[key] / MB, "MB")
        for kind, values in measured.items()
        for key in ("columns", "extra", "peak")
    ]
    table = measured["table"]
    ratio = max(0.0, table["extra"] - table["batch"]) / table["columns"]
    return rows, {"memory_over_columns": ratio}, {"images_gb": measured["images"]["peak"] / GB}


def _csv(size: Size) -> Measured:
    with tempfile.TemporaryDirectory(prefix="sovfed-bench-") as folder:
        measured = child("texts", folder, str(size.csv), str(size.csv_turns))
    rows = [
        _row(f"CSV, {kind}", system, 1e3 * values[f"{system}_s"], "ms CPU")
        for kind, values in measured.items()
        for system in ("ours", *PEERS)
    ]
    ratios = {
        f"{name}_over_{peer}_cpu": measured[kind][f"over_{peer}"]
        for name, kind in (("csv", "mixed"), ("csv_numbers", "numbers"))
        for peer in PEERS
    }
    return rows, ratios, {}


def _engines(size: Size) -> Measured:
    from sovfed.simulations.benchmarks.own_tasks.dictionary import install

    turns: dict[str, list[dict[str, Any]]] = {engine: [] for engine, _ in size.rounds}
    with tempfile.TemporaryDirectory(prefix="sovfed-bench-") as name:
        folder = Path(name)
        package = install(folder / "package")
        for turn in range(size.turns):
            for engine, rounds in size.rounds:
                run_folder = str(folder / str(turn))
                turns[engine].append(
                    child("rounds", engine, run_folder, str(size.institutions), str(rounds), paths=(package,))
                )
    rows = [
        _row(
            f"a round of {size.institutions}",
            engine,
            statistics.median(measurement[key] for measurement in measured),
            unit,
        )
        for engine, measured in turns.items()
        for key, unit in (("cpu_ms", "ms CPU"), ("wall_ms", "ms"))
    ]
    return rows, over_ray(turns), {}


def over_ray(turns: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Ray's CPU of a round over that of each other engine in the same turn: the median over turns.

    Not wall: Flower's simulation has an actor for every CPU and ours one process, so what else runs would decide it.
    """
    return {
        f"{engine}_over_ray": statistics.median(
            ray["cpu_ms"] / own["cpu_ms"] for ray, own in zip(turns["ray"], measured, strict=True)
        )
        for engine, measured in turns.items()
        if engine != "ray"
    }


def _steps(other: str, size: Size) -> tuple[float, list[dict[str, Any]]]:
    """CPU of ours over `other`'s: the median over processes of the median over neighbouring turns."""
    ratios: list[float] = []
    seconds: dict[str, list[float]] = {"ours": [], other: []}
    for _ in range(size.processes):
        with _asked("ours") as own_process, _asked(other) as reference_process:
            pairs = [(_ask(own_process), _ask(reference_process)) for _ in range(size.asks)]
        ratios.append(statistics.median(a / b for a, b in pairs))
        seconds["ours"] += [a for a, _ in pairs]
        seconds[other] += [b for _, b in pairs]
    names = {"ours": "ours", other: "bare" if other == "bare" else "before"}
    rows = [
        _row("digits, an update", names[system], 1e3 * statistics.median(each), "ms CPU")
        for system, each in seconds.items()
    ]
    return statistics.median(ratios), rows


@contextmanager
def _asked(source: str) -> Iterator[subprocess.Popen[str]]:
    """A process that trains when it is asked to. Another version of ours finds itself before the one installed."""
    older = () if source in ("ours", "bare") else (Path(source).resolve(),)
    command: Sequence[str] = [sys.executable, "-P", str(Path(steps.__file__)), source]
    with subprocess.Popen(
        command, env=environment(older), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise ServiceError(f"digits by {source}: does not run")
            yield process
        finally:
            process.kill()


def _ask(process: subprocess.Popen[str]) -> float:
    if process.stdin is None or process.stdout is None:
        raise ServiceError("a process without pipes")
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())
