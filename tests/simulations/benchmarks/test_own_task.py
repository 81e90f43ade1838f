"""What `sovfed bench own-task` measures is what it says, on tables of a few rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sovfed.clients.data.csv import CONNECTOR
from sovfed.federation.config import DataConfig
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import CODES, NUMBERS
from sovfed.simulations.benchmarks.own_task import PEERS, Size, fits, over_ray, run
from sovfed.simulations.benchmarks.own_tasks import memory, texts
from sovfed.simulations.benchmarks.own_tasks.steps import bare, ours
from sovfed.simulations.benchmarks.report import Files

TINY = Size(
    table=2_000, images=8, csv=500, csv_turns=1, institutions=8, turns=1, processes=1, asks=2,
    rounds=(("ray", 1), ("inprocess", 1), ("vectorised", 1)),
)  # fmt: skip


def test_a_ratio_is_rays_cpu_over_ours_in_the_same_turn() -> None:
    cpu = {"ray": (100.0, 400.0, 200.0), "inprocess": (20.0, 10.0, 100.0), "vectorised": (1.0, 2.0, 4.0)}
    turns = {engine: [{"cpu_ms": ms, "wall_ms": 1.0} for ms in each] for engine, each in cpu.items()}
    assert over_ray(turns) == {"inprocess_over_ray": 5.0, "vectorised_over_ray": 100.0}


def test_the_columns_bytes_are_those_of_float32(tmp_path: Path) -> None:
    figures = memory.measure("table", tmp_path, 600)
    assert (figures["records"], figures["columns"]) == (600, 600 * 4 * (50 + 1))
    assert figures["batch"] == 256 * 50 * 4


@pytest.mark.parametrize("kind", ["numbers", "mixed"])
def test_each_reader_has_a_positive_time(kind: str, tmp_path: Path) -> None:
    figures = texts.measure(kind, tmp_path, 50, 1)
    assert min(figures[f"{system}_s"] for system in ("ours", *PEERS)) > 0
    assert min(figures[f"over_{peer}"] for peer in PEERS) > 0


def test_pandas_is_asked_for_what_the_connector_gives(tmp_path: Path) -> None:
    schema = texts.schema_of("mixed")
    path = texts.write(tmp_path / "mixed.csv", schema, 40)
    task = Task(name="t", title="t", schema=schema, metrics=BinaryMetrics(), headline="auc", build=None, loss=None)
    read = CONNECTOR.load(task, DataConfig(source="csv", path=str(path), person="row"))
    table, own = texts.checked(pd.read_csv(path), schema), read.take(np.arange(40))
    assert all((table[column.name] == own[NUMBERS][:, place]).all() for place, column in enumerate(schema.numbers))
    assert all((table[column.name] == own[CODES][:, place]).all() for place, column in enumerate(schema.codes))


def test_pandas_is_told_the_types_that_the_connector_gives(tmp_path: Path) -> None:
    schema = texts.schema_of("mixed")
    path = texts.write(tmp_path / "mixed.csv", schema, 40)
    frame, table = texts.typed(path, schema), texts.checked(pd.read_csv(path), schema)
    for column in schema.columns:
        values = frame[column.name]
        if column.kind == "category":
            values = values.cat.codes
        elif column.kind == "date":
            values = (values - pd.Timestamp(0)).dt.days
        assert (values.to_numpy(np.float32) == table[column.name]).all()


def test_one_part_alone_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    run(True, None, files=Files(json=path), console=Console(quiet=True), size=TINY, parts=("csv",))
    ratios = json.loads(path.read_text())["ratios"]
    assert set(ratios) == {f"{name}_over_{peer}_cpu" for name in ("csv", "csv_numbers") for peer in PEERS}


def test_both_kinds_of_steps_train() -> None:
    ours()()
    assert bare()() is not None


@pytest.mark.deploy
def test_the_whole_benchmark_writes_its_ratios(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    run(True, None, files=Files(json=path), console=Console(quiet=True), size=TINY)
    document = json.loads(path.read_text())
    assert set(document["ratios"]) == {
        "memory_over_columns", "inprocess_over_ray", "vectorised_over_ray", "digits_over_bare",
        *(f"{name}_over_{peer}_cpu" for name in ("csv", "csv_numbers") for peer in PEERS),
    }  # fmt: skip
    assert 0 < document["figures"]["images_gb"] < 2


def test_a_figure_is_held_to_its_bar() -> None:
    assert fits("memory_over_columns", 1.3) and not fits("memory_over_columns", 1.31)
    assert fits("vectorised_over_ray", 40.0) and not fits("vectorised_over_ray", 39.9)
    assert fits("digits_over_bare", 9.0)  # for which nothing was promised
