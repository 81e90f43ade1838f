"""`sovfed bench noise`: nanoseconds a sample of our discrete Gaussian, beside generators that promise less.

CPU time of one thread, medians over interleaved turns of a million samples. `torch.randn` is a Mersenne Twister with
32 bits of seed and floats whose low bits tell values apart; numpy's is not cryptographic either; `keystream` is the
AES-256-CTR that 16 bits a sample take at the least.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from sovfed.federation.privacy.discrete_gaussian import discrete_gaussian, sampler_distance
from sovfed.federation.privacy.sampling import Keystream
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

SAMPLES: Final = 1_000_000
VARIANCES: Final = (2**16, 2**32, 2**48)  # units²: σ = 256, 65,536 and 16.8 million units
COLUMNS: Final = (
    Column("system", "system"),
    Column("variance", "variance, units²", "{:,}".format),
    Column("ns", "ns a sample", "{:.2f}".format),
    Column("low", "1st quartile", "{:.2f}".format),
    Column("high", "3rd quartile", "{:.2f}".format),
    Column("distance", "distance at most"),
)


def run(*, quick: bool, files: Files, console: Console) -> dict[str, Any]:
    """Measure every generator and publish the report; `quick` takes 15 turns instead of 60."""
    files.check()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = _measure(15 if quick else 60)
    finally:
        torch.set_num_threads(threads)
    ns = {(row["system"], row["variance"]): row["ns"] for row in rows}
    own_times = {f"ns_{variance.bit_length() - 1}_bits": ns["sovfed", variance] for variance in VARIANCES}
    ratio = ns["sovfed", VARIANCES[1]] / ns["torch.randn", 1]
    report = Report(
        "Noise, a sample", COLUMNS, rows, {**own_times, "ours_over_torch": ratio},
        bars=Bars("ns", "low", "high", group="variance", series="system", label="CPU nanoseconds a sample"),
        conditions=conditions(threads=1, samples=SAMPLES, quick=quick),
    )  # fmt: skip
    return publish(report, console, files)


def _measure(turns: int) -> list[dict[str, Any]]:
    words, generator = np.empty(SAMPLES, "<u2"), np.random.default_rng(0)
    systems: dict[tuple[str, int], Callable[[], object]] = {
        ("torch.randn", 1): lambda: torch.randn(SAMPLES),
        ("numpy", 1): lambda: generator.standard_normal(SAMPLES),
        ("keystream", 1): lambda: Keystream(os.urandom).fill(words),
    }
    for variance in VARIANCES:
        systems["sovfed", variance] = lambda variance=variance: discrete_gaussian(SAMPLES, variance)  # type: ignore[misc]
    times_by_system: dict[tuple[str, int], list[float]] = {system: [] for system in systems}
    for turn in range(turns + 1):
        for key, draw in systems.items():
            started = time.thread_time()
            draw()
            if turn:
                times_by_system[key].append(1e9 * (time.thread_time() - started) / SAMPLES)
    rows = []
    for (system, variance), times in times_by_system.items():
        low, middle, high = statistics.quantiles(times, n=4)
        distance = f"{sampler_distance(variance):.0e}" if system == "sovfed" else "not stated"
        row = {"system": system, "variance": variance, "ns": middle, "low": low, "high": high, "distance": distance}
        rows.append(row)
    return rows
