"""The soak's arithmetic: slopes by hand, and rows only of who was there all the time."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sovfed.federation.errors import ServiceError
from sovfed.simulations.benchmarks.process_tree import open_files, threads
from sovfed.simulations.benchmarks.soak import Sample, Usage, _rows, _worst, slope


def test_a_slope_is_that_of_the_line() -> None:
    assert slope([(0, 1.0), (10, 6.0), (20, 11.0)]) == pytest.approx(0.5)
    assert slope([(0, 1.0), (1, 0.0), (2, 2.0)]) == pytest.approx(0.5)  # by hand: (−1)(0) + (1)(1) over 2
    assert slope([(5, 1.0), (5, 2.0)]) == slope([]) == 0.0


def test_rows_leave_out_the_warm_up_and_who_came_or_went() -> None:
    def sample(at: float, memory: float) -> Sample:
        usage = {"trainer": Usage(memory, 10.0, 3.0), "a home": Usage(disk_mb=at / 100)}
        return Sample(at, usage | ({"coordinator": Usage(1.0, 1.0, 1.0)} if at < 300 else {}))

    samples = [sample(0, 900.0), *(sample(at, 100 + at / 50) for at in (100, 200, 300))]
    rows = _rows("1,000 rounds", samples, 1_000.0)
    assert [row["who"] for row in rows] == ["trainer", "a home"]
    trainer, home = rows
    assert trainer["memory_first_mb"] == 102.0 and trainer["memory_mb"] == pytest.approx(20.0)
    assert trainer["files"] == trainer["threads"] == 0.0 and trainer["disk_mb"] is None
    assert home["disk_mb"] == pytest.approx(10.0) and home["memory_mb"] is None
    worst = _worst(rows)
    assert worst["memory_mb_per_1000_rounds_worst"] == pytest.approx(20.0)
    assert worst["disk_mb_per_1000_rounds_worst"] == pytest.approx(10.0)


def test_no_sample_is_said() -> None:
    with pytest.raises(ServiceError, match="no sample"):
        _rows("1,000 rounds", [], 1_000.0)


def test_files_and_threads_are_counted() -> None:
    ended, before = threading.Event(), (open_files(os.getpid()), threads(os.getpid()))
    thread = threading.Thread(target=ended.wait)
    thread.start()
    with Path(os.devnull).open(encoding="utf-8"):
        assert (open_files(os.getpid()), threads(os.getpid())) == (before[0] + 1, before[1] + 1)
    ended.set()
    thread.join()
    assert open_files(2**22) == threads(2**22) == 0
