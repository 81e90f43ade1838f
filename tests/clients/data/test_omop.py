"""OMOP CDM tables become one row a person, from files of either kind or from a database."""

from __future__ import annotations

import dataclasses
import sqlite3
from typing import TYPE_CHECKING

import pyarrow.csv
import pyarrow.parquet
import pytest
from tests.clients.data.cases import AGE, rows, task_of

from sovfed.clients.data import load_records
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import Column, number, target

if TYPE_CHECKING:
    from pathlib import Path

TASK = task_of(
    AGE, Column("sex", "category", categories=("male", "female")), number("glucose", 0, 600),
    number("tests", 0, 50), target("diabetes", "no", "yes"),
)  # fmt: skip
TABLES = {
    "person": "person_id,gender_concept_id,year_of_birth\n1,8507,1980\n2,8532,1990\n",
    "measurement": "person_id,measurement_concept_id,measurement_date,value_as_number,unit_concept_id\n"
    "1,3004501,2024-01-01,90,8840\n1,3004501,2025-01-01,100.5,8840\n2,3004501,2025-01-01,110,8840\n"
    "2,77,2025-01-01,5,1\n",
    "condition_occurrence": "person_id,condition_concept_id,condition_start_date\n"
    "2,201826,2020-01-01\n1,5,2020-01-01\n",
}
MAPPING = """
columns:
  age: {table: person, path: year_of_birth, age_at: 2026-01-01}
  sex: {table: person, path: gender_concept_id, values: {8507: male, 8532: female}}
  glucose: {table: measurement, codes: 3004501, take: UNIT}
  tests: {table: measurement, take: count}
  diabetes: {table: condition_occurrence, codes: [201826, 443238], take: any}
"""


def _cdm(folder: Path, kind: str, take: str = "last, unit: 8840") -> DataConfig:
    (folder / "mapping.yaml").write_text(MAPPING.replace("UNIT", take).replace("8840", '"8840"'))
    config = DataConfig(source="omop", path=str(folder), mapping=str(folder / "mapping.yaml"))
    for name, text in TABLES.items():
        (folder / f"{name}.csv").write_text(text)
        if kind == "parquet":
            table = pyarrow.csv.read_csv(folder / f"{name}.csv")
            pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
            (folder / f"{name}.csv").unlink()
    if kind != "sql":
        return config
    with sqlite3.connect(folder / "cdm.db") as database:
        for name, text in TABLES.items():
            header, *lines = text.splitlines()
            database.execute(f"CREATE TABLE {name} ({header})")
            for line in lines:
                cells = [cell if "-" in cell else float(cell) if "." in cell else int(cell) for cell in line.split(",")]
                database.execute(f"INSERT INTO {name} VALUES ({','.join('?' * len(cells))})", cells)  # noqa: S608
    database.close()
    (folder / "url").write_text(f"sqlite:///{folder / 'cdm.db'}")
    (folder / "url").chmod(0o600)
    return dataclasses.replace(config, path=None, url_file=str(folder / "url"))


@pytest.mark.parametrize("kind", ["csv", "parquet", "sql"])
def test_each_person_is_a_row(tmp_path: Path, kind: str) -> None:
    records = load_records(TASK, _cdm(tmp_path, kind))
    assert rows(records) == [[46, 100.5, 2, 0], [36, 110, 2, 1]]
    assert records.take(records.persons)[".codes"].tolist() == [[0], [1]]
    assert records.persons.tolist() == [0, 1]


@pytest.mark.parametrize(("take", "expected"), [("first", 90), ("mean", 95.25), ("least", 90), ("greatest", 100.5)])
def test_which_of_several_values_is_taken_is_declared(tmp_path: Path, take: str, expected: float) -> None:
    assert rows(load_records(TASK, _cdm(tmp_path, "csv", take)))[0][1] == expected


def test_another_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'glucose': 3 values are in another unit than 8753"):
        load_records(TASK, _cdm(tmp_path, "csv", 'last, unit: "8753"'))


def test_a_table_that_is_not_there_is_told(tmp_path: Path) -> None:
    config = _cdm(tmp_path, "csv")
    (tmp_path / "measurement.csv").unlink()
    with pytest.raises(DataError, match=r"neither measurement\.parquet nor measurement\.csv"):
        load_records(TASK, config)
