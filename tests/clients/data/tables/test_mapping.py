"""An institution's own names of columns and words are declared, and nothing that is declared is ignored."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.clients.data.cases import AGE, ILL, rows, task_of, written

from sovfed.clients.data import load_records
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import CODES, Column, number

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.config import DataConfig

HOME = Column("residence", "category", categories=("home", "care"))
TASK = task_of(AGE, HOME, ILL)
TEXT = "Alter,residence,ill\n50,zu  Hause,0\n51,HOME,1\n52,Heim,krank\n53,3,0\n"


def mapped(folder: Path, text: str, table: str = TEXT) -> DataConfig:
    (folder / "own.yaml").write_text(text)
    return dataclasses.replace(written(folder, table), mapping=str(folder / "own.yaml"))


def test_own_names_and_own_words_are_the_tasks(tmp_path: Path) -> None:
    text = """columns:
      age: Alter
      residence: {values: {zu hause: home, Heim: care, 3: care}}
      ill: {name: ill, values: {krank: "yes"}}
    """
    records = load_records(TASK, mapped(tmp_path, text))
    assert rows(records) == [[50, 0], [51, 1], [52, 1], [53, 0]]
    assert records.take(records.persons)[CODES].tolist() == [[0], [0], [1], [1]]


WEIGHED = task_of(number("kg", 40, 120, missing="mean"), number("celsius", 30, 45), ILL)
POUNDS = "kg,celsius,ill\n{},98.6,0\n-99,104,1\n"
UNITS = "columns: {kg: {multiply: 0.45359237}, celsius: {multiply: 0.5555555555555556, add: -17.77777777777778}}"


@pytest.mark.parametrize("pounds", ["200", "<200"])
def test_a_declared_unit_is_converted_before_bounds_and_after_words_for_what_is_missing(
    tmp_path: Path, pounds: str
) -> None:
    config = mapped(tmp_path, UNITS, POUNDS.format(pounds))
    records = load_records(WEIGHED, dataclasses.replace(config, missing_words=("-99",), detection_limit="limit"))
    assert rows(records)[0] == [np.float32(90.718474), pytest.approx(37), 0]
    assert np.isnan(rows(records)[1][0]) and rows(records)[1][1] == pytest.approx(40)
    with pytest.raises(DataError, match="'kg': 1 value is outside its bounds"):
        load_records(WEIGHED, dataclasses.replace(config, missing_words=("-9",), detection_limit="limit"))


def test_numbers_of_parquet_are_converted_in_double_precision(tmp_path: Path) -> None:
    config = mapped(tmp_path, UNITS)
    path = tmp_path / "records.parquet"
    pq.write_table(
        pa.table({"kg": pa.array([200.0, 150.0], pa.float32()), "celsius": [98.6, 100], "ill": [0, 1]}), path
    )
    records = load_records(WEIGHED, dataclasses.replace(config, source="parquet", path=str(path)))
    assert [row[0] for row in rows(records)] == [np.float32(90.718474), np.float32(68.0388555)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("columns: {residence: {multiply: 2}}", "a category has no unit"),
        ("columns: {age: {multiply: 0}}", "outside"),
        ("columns: {age: {multiply: .nan}}", "must be finite"),
        ("columns: {age: {multiply: '2'}}", "must be float"),
        ("values: {residence: {Heim: care}}", "unknown key 'values'.*columns: {COLUMN: {values"),
        ("columns: {residense: Wohnform}", "no such column .did you mean 'residence'"),
        ("columns: {residence: {word: care}}", "unknown key"),
        ("columns: {residence: {values: {Heim: cared}}}", "'cared' is no word of the task's"),
        ("columns: {ill: {values: {krank: yes}}}", "in quotes"),
        ("columns: {age: {values: {alt: 99}}}", "data.missing_words"),
        ("columns: {residence: {values: {Heim: care, HEIM: home}}}", "'HEIM' stands twice"),
        ("columns: {residence: {values: {3: care, '3': home}}}", "stands twice, as a number"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        load_records(TASK, mapped(tmp_path, text))


def test_words_and_numbers_that_are_not_the_tasks_are_told_with_the_way_to_declare_them(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_records(TASK, written(tmp_path, "age,residence,ill\n-99,Heim,0\n"))
    assert "data.mapping" in str(caught.value) and "such as -99" in str(caught.value)
    assert "Heim" not in str(caught.value)
