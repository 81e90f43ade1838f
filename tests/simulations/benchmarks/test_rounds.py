"""The round benchmark: its arithmetic by hand, its stock app, its process trees, and a small run of all of it."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sovfed.federation.errors import ConfigError
from sovfed.simulations.benchmarks import process_tree, report, rounds
from sovfed.simulations.benchmarks.ours import Run, Weight
from sovfed.simulations.benchmarks.rounds import FULL, PARAMETERS, QUICK, Block
from sovfed.simulations.benchmarks.stock_flower import StockFlower

LINES = [
    {"seconds": 5.0, "seconds_compute": 1.0, "bytes": 10},
    {"seconds": 9.0, "seconds_compute": 2.0, "bytes": 30},
    {"seconds": 2.0, "seconds_compute": 0.5, "bytes": 20},
]
# A process with a child in a session of its own, as Flower's SuperLink has.
FAMILY = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
"""


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", FAMILY]) as parent:
        deadline = time.monotonic() + 30
        while len(process_tree.tree([parent.pid])) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        members = process_tree.tree([parent.pid])
        yield parent
        process_tree.send(members, signal.SIGKILL)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_states(members: dict[int, int], wanted: str) -> None:
    deadline = time.monotonic() + 10
    while not all(state(pid) in wanted for pid in members):
        assert time.monotonic() < deadline, [state(pid) for pid in members]
        time.sleep(0.01)


def test_overhead_is_wall_less_slowest_compute() -> None:
    row = rounds._row("lane", "40mb", LINES)
    assert (row["overhead_median_s"], row["overhead_min_s"], row["overhead_max_s"]) == (4.0, 1.5, 7.0)
    assert (row["wall_median_s"], row["bytes_per_round"], row["payload_bytes"]) == (5.0, 20, 40_000_000)


def test_ratios_are_stock_over_ours() -> None:
    medians = {
        "stock": {"10kb": 8.0, "40mb": 30.0},
        "stock_training": {"10kb": 4.0, "40mb": 20.0},
        "lane": {"10kb": 0.02, "40mb": 2.0},
        "fallback": {"10kb": 4.0, "40mb": 10.0},
    }
    rows = [
        {"system": system, "payload": payload, "overhead_median_s": seconds}
        for system, by_payload in medians.items()
        for payload, seconds in by_payload.items()
    ]
    assert rounds._ratios(rows) == pytest.approx(
        {
            "stock_over_ours_10kb": 400.0, "stock_over_ours_40mb": 15.0,
            "stock_over_fallback_10kb": 2.0, "stock_over_fallback_40mb": 3.0,
            "stock_training_over_ours_10kb": 200.0, "stock_training_over_ours_40mb": 10.0,
            "stock_training_over_fallback_10kb": 1.0, "stock_training_over_fallback_40mb": 2.0,
        }
    )  # fmt: skip


def test_ours_is_compared_with_a_bare_stream_by_whole_rounds() -> None:
    medians = {
        "bare": {"10kb": 0.5, "40mb": 2.0},
        "lane": {"10kb": 4.0, "40mb": 3.0},
        "masked": {"10kb": 7.5, "40mb": 5.0},
    }
    rows = [
        {"system": system, "payload": payload, "wall_median_s": seconds}
        for system, by_payload in medians.items()
        for payload, seconds in by_payload.items()
    ]
    assert rounds._by_wall(rows) == {
        "ours_over_bare_10kb": 8.0, "ours_over_bare_10kb_secagg": 15.0,
        "ours_over_bare_40mb": 1.5, "ours_over_bare_40mb_secagg": 2.5,
    }  # fmt: skip


@pytest.mark.parametrize("blocks", [QUICK, FULL])
def test_both_plans_alternate_and_measure_everything(blocks: tuple[Block, ...]) -> None:
    kinds = [(block.system, block.payload) for block in blocks]
    assert all(before != after for before, after in pairwise(kinds))
    systems = ("stock", "bare", "lane", "masked", "fallback", "nvflare")
    measured = {(block.system, block.payload) for block in blocks}
    assert measured == {(system, payload) for system in systems for payload in PARAMETERS}


def test_the_long_run_is_weighed_at_round_20_and_before_its_end() -> None:
    weights = [
        Weight(3, 1_000_000, 5),
        Weight(21, 2_000_000, 7_000_000),
        Weight(60, 9, 9),
        Weight(198, 3_000_000, 8_000_000),
    ]
    assert rounds._figures(Run(LINES, 1.5, weights)) == {
        "seconds_3_rounds_10kb": 1.5,
        "server_memory_mb_round_21": 2.0,
        "server_database_mb_round_21": 7.0,
        "server_memory_mb_round_198": 3.0,
        "server_database_mb_round_198": 8.0,
    }


def test_stock_client_adds_one_and_reports_its_seconds() -> None:
    from flwr.app import ArrayRecord, Context, RecordDict

    from sovfed.federation.wire.flower import new_message
    from sovfed.simulations.benchmarks.stock.client_app import app

    content = RecordDict({"arrays": ArrayRecord([np.array([1.0, -2.5], dtype=np.float32)])})
    request = new_message(content, run_id=1, node_id=1, kind="train", group="1")
    reply = app(request, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})).content
    assert reply.array_records["arrays"].to_numpy_ndarrays()[0].tolist() == [2.0, -1.5]
    assert reply.metric_records["metrics"]["num-examples"] == 1
    assert 0 <= float(str(reply.metric_records["metrics"]["seconds"])) < 1


def test_stock_server_writes_wall_and_slowest_compute_of_each_round(tmp_path: Path) -> None:
    from flwr.app import ArrayRecord, MetricRecord, RecordDict

    from sovfed.simulations.benchmarks.stock.server_app import Clock

    arrays = ArrayRecord([np.zeros(2_500, dtype=np.float32)])
    replies = [
        RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1, "seconds": seconds})})
        for seconds in (0.25, 0.75, 0.5)
    ]
    clock = Clock(tmp_path / "rounds.jsonl")
    clock.round_ended(0, arrays)
    started = time.monotonic()
    time.sleep(0.05)
    clock.fold_training(replies, "num-examples")
    time.sleep(0.05)
    clock.fold_evaluation(replies[1:], "num-examples")
    clock.round_ended(1, arrays)
    most = time.monotonic() - started
    (line,) = map(json.loads, (tmp_path / "rounds.jsonl").read_text().splitlines())
    assert (line["round"], line["replies"]) == (1, 2)
    assert (line["seconds_compute"], line["training_seconds_compute"]) == (1.5, 0.75)
    assert 0.05 <= line["training_seconds"] <= line["seconds"] - 0.05 <= most
    assert 5 * 10_000 <= line["training_bytes"] <= 5 * 10_200  # two down, three up, and numpy's header
    assert line["bytes"] - line["training_bytes"] == 2 * arrays.count_bytes()


def test_tree_finds_grandchildren_in_other_sessions(family: subprocess.Popen[bytes]) -> None:
    members = process_tree.tree([family.pid])
    assert len(members) == 2
    assert family.pid in members
    assert process_tree.resident_bytes(family.pid) > 1_000_000


def test_paused_processes_stand_still_and_go_on_even_after_an_error(family: subprocess.Popen[bytes]) -> None:
    members = process_tree.tree([family.pid])

    def measure() -> None:
        with process_tree.paused([family.pid]):
            wait_for_states(members, "T")
            raise ValueError("measured")

    with pytest.raises(ValueError, match="measured"):
        measure()
    wait_for_states(members, "RSD")


def test_a_process_that_took_over_the_id_gets_no_signal(family: subprocess.Popen[bytes]) -> None:
    members = process_tree.tree([family.pid])
    process_tree.send({pid: started - 1 for pid, started in members.items()}, signal.SIGKILL)
    assert process_tree.tree([family.pid]) == members


def test_what_is_gone_weighs_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert process_tree.resident_bytes(gone.pid) == 0
    assert process_tree.tree([gone.pid]) == {}


def test_report_writes_table_json_csv_and_picture(tmp_path: Path) -> None:
    rows = [rounds._row(system, payload, LINES) for system in ("stock", "lane") for payload in PARAMETERS]
    bars = report.Bars("overhead_median_s", "overhead_min_s", "overhead_max_s", "payload", "system", "s")
    table = report.Report("A title", rounds.COLUMNS, rows, {"ratio": 2.0}, {"figure": 3.5}, {"cpus": 2}, bars)
    files = [tmp_path / name for name in ("a.json", "a.csv", "a.png")]
    console = Console(record=True, width=160, file=(tmp_path / "screen").open("w"))
    written = report.publish(table, console, report.Files(*files))
    console.file.close()
    assert json.loads(files[0].read_text()) == written
    assert written["rows"] == rows
    assert (written["ratios"], written["figures"]) == ({"ratio": 2.0}, {"figure": 3.5})
    with files[1].open() as lines:
        assert [row["overhead_median_s"] for row in csv.DictReader(lines)] == ["4.0"] * 4
    assert files[2].read_bytes().startswith(b"\x89PNG")
    text = console.export_text()
    assert all(word in text for word in ("A title", "stock", "lane", "ratio", "figure", "cpus 2"))


def test_memory_is_told_of_the_largest_vector_and_by_what_each_more_byte_costs() -> None:
    growths = {400: dict.fromkeys(rounds.WEIGHED, 900.0), 100: dict.fromkeys(rounds.WEIGHED, 300.0)}
    ratios = rounds.memory_ratios(growths)
    assert ratios["memory_trainer"] == pytest.approx(2.25) and ratios["slope_trainer"] == pytest.approx(2.0)
    assert set(rounds.memory_ratios({100: growths[100]})) == {f"memory_{name}" for name in rounds.WEIGHED}
    assert rounds.memory_ratios({}) == {}


def test_a_file_that_cannot_be_written_is_refused_before_the_measurement(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        rounds.run(True, report.Files(tmp_path / "missing" / "rounds.json"), Console(quiet=True))


@pytest.mark.deploy
@pytest.mark.timeout(300)
def test_three_systems(tmp_path: Path) -> None:
    blocks = (Block("stock", "10kb", 1), Block("lane", "10kb", 20, 10), Block("fallback", "10kb", 1))
    stock = StockFlower(tmp_path / "stock", rounds.NODES)
    with rounds._federations(tmp_path, Console(quiet=True), {"stock": stock}) as ours:
        members = process_tree.tree([os.getpid()])
        members.pop(os.getpid())
        lines, _ = rounds._measure(blocks, {"stock": stock}, ours, math.inf, Console(quiet=True))
    assert {of: len(block_lines) for of, block_lines in lines.items()} == {
        ("stock", "10kb"): 1, ("stock_training", "10kb"): 1, ("lane", "10kb"): 20, ("fallback", "10kb"): 1,
    }  # fmt: skip
    rows = {row["system"]: row for row in (rounds._row(*of, block_lines) for of, block_lines in lines.items())}
    moved = {name: round(row["bytes_per_round"] / 40_000) for name, row in rows.items()}  # models to or from all four
    assert moved == {"stock": 3, "stock_training": 2, "lane": 2, "fallback": 2}  # stock evaluates in a second exchange
    assert (
        rows["lane"]["overhead_median_s"] < rows["fallback"]["overhead_median_s"] < rows["stock"]["overhead_median_s"]
    )
    assert len(members) >= 20
    left = process_tree.tree(members)
    assert not {pid for pid, began in members.items() if left.get(pid) == began}
