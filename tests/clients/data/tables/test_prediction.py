"""Rows to predict for need no target, and each keeps its line."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from tests.clients.data.cases import ILL, NAMELESS, SMALL, task_of, written

from sovfed.clients.data.chosen import AUTO, settled
from sovfed.clients.data.tables.prediction import place_of, read_for_prediction, source_of
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import NUMBERS, Column

if TYPE_CHECKING:
    from pathlib import Path


def test_inputs_are_read_without_targets(tmp_path: Path) -> None:
    path = written(tmp_path, "age,dose,patient\n50,1,Ada\n\n51,2,Bob\n").path or ""
    read = read_for_prediction(SMALL.schema, path)
    assert read.table[NUMBERS].tolist() == [[50, 1], [51, 2]]
    assert set(read.table) == {NUMBERS}
    assert read.persons is not None
    assert read.persons.to_pylist() == ["Ada", "Bob"]
    assert read.lines is not None
    assert read.lines.tolist() == [2, 4]


def test_a_row_at_fault_is_refused_or_left_out_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "age;dose;ill\n50;1,5;?\n51;x;0\n52;2;\n").path or ""
    with pytest.raises(DataError, match=r"column 'dose': 1 value is no number \(line 3\)"):
        read_for_prediction(NAMELESS.schema, path)
    read = read_for_prediction(NAMELESS.schema, path, DataConfig(bad_rows="quarantine", max_bad_share=0.5))
    assert read.table[NUMBERS].tolist() == [[50, 1.5], [52, 2]]
    assert read.lines is not None
    assert read.lines.tolist() == [2, 4]


def test_a_file_of_unknown_kind_is_told(tmp_path: Path) -> None:
    assert source_of("x.CSV") == "csv"
    assert source_of("x.jsonl.xz") == "jsonl"
    with pytest.raises(DataError, match=r"x\.xlsx: no such file or folder"):
        source_of(tmp_path / "x.xlsx")
    (tmp_path / "x.xlsx").touch()
    for path in (tmp_path / "x.xlsx", tmp_path):
        with pytest.raises(DataError, match=r"\.parquet.*name the source with data\.source"):
            source_of(path)


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["north.csv", "south.csv"], "csv"), (["north.parquet", "readme.md"], "parquet"), (["a.jsonl.xz"], "jsonl"),
        (["Patient.ndjson"], "fhir"), (["person.csv", "condition_occurrence.csv"], "omop"),
    ],
)  # fmt: skip
def test_a_folder_is_read_by_what_lies_in_it(tmp_path: Path, names: list[str], source: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert place_of(tmp_path, SMALL.schema) == {"source": source, "path": str(tmp_path)}


def test_a_table_of_a_task_with_an_image_is_that_of_its_folder(tmp_path: Path) -> None:
    schema = task_of(Column("scan", "image", shape=(1, 2, 3)), ILL).schema
    (tmp_path / "scans.csv").touch()
    table = {"source": "images", "path": str(tmp_path), "table": "scans.csv"}
    assert place_of(tmp_path / "scans.csv", schema) == table
    assert place_of(tmp_path, schema) == {"source": "images", "path": str(tmp_path)}
    auto = DataConfig(source=AUTO, path=str(tmp_path / "scans.csv"))
    assert settled(auto, schema) == dataclasses.replace(auto, source="images", path=str(tmp_path), table="scans.csv")
    assert settled(auto).source == "csv"
    with pytest.raises(DataError, match="which records"):
        settled(DataConfig(source=AUTO))
