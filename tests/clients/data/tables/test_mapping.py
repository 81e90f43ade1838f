"""An institution's own names of columns and words are declared, and nothing that is declared is ignored."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from tests.clients.data.cases import AGE, ILL, rows, task_of, written

from sovfed.clients.data import load_records
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import CODES, Column

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


@pytest.mark.parametrize(
    ("text", "told"),
    [
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
