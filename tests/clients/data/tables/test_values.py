"""What becomes of a value depends on no other one of its batch."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clients.data.cases import AGE, ILL, SMALL, task_of

from sovfed.clients.data import load_records
from sovfed.clients.data.jsonl import ROWS
from sovfed.clients.data.tables.cells import names_of
from sovfed.clients.data.tables.values import cells_of, lists_of
from sovfed.federation.config import DataConfig
from sovfed.federation.tasks.columns import Column

VALUES = [7, 7.0, 7.5, True, "7", None, 2**53 + 1, Decimal("7.25"), Decimal("7.5"), [1], {"a": 1}, "ü", 1e300]


@pytest.mark.parametrize("value", VALUES)
def test_a_name_is_the_same_alone_and_beside_any_other(value: Any) -> None:
    alone = names_of(cells_of([value], numeric=False))[0][0].as_py()
    for other in VALUES:
        assert names_of(cells_of([value, other], numeric=False))[0][0].as_py() == alone


def test_numbers_stay_numbers_and_lists_are_their_json() -> None:
    assert cells_of([True, 2, 0.5, Decimal("1.5"), None], numeric=True).to_pylist() == [1.0, 2.0, 0.5, 1.5, None]
    listed = cells_of([[1, Decimal("2.5")], 3, "x", None, ["y"], True], numeric=True)
    assert listed.to_pylist() == ["[1, 2.5]", "3", "x", None, '["y"]', "1"]
    assert lists_of(listed).to_pylist() == [[1.0, 2.5], [3.0], None, None, None, [1.0]]
    assert cells_of([1, "x"], numeric=True).to_pylist() == ["1", "x"]
    assert cells_of([10**400], numeric=True).to_pylist() == [float("inf")]
    day = datetime.date(2026, 1, 31)
    assert cells_of([day, None], numeric=False).to_pylist() == [day, None]


def test_a_person_whose_name_is_a_text_moves_nobody_whose_name_is_a_number(tmp_path: Path) -> None:
    """16 of 40 persons went to the other part, since 7.0 was read as another name."""
    rows: list[dict[str, Any]] = [{"patient": float(n), "age": n, "dose": 1, "ill": "no"} for n in range(40)]
    parts = []
    for more in ([], [{"patient": "Q", "age": 5, "dose": 1, "ill": "no"}]):
        path = tmp_path / "records.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in [*rows, *more]))
        records = load_records(SMALL, DataConfig(source="jsonl", path=str(path)))
        parts.append(records.train[records.train < 40])
    assert parts[0].tolist() == parts[1].tolist()


@pytest.mark.parametrize("value", [[1], [[1]], {"a": 1}, "sixty", True, 1e999, "61"])
@pytest.mark.parametrize("shaped", [False, True])
def test_nobody_is_read_otherwise_for_what_one_person_s_value_is(tmp_path: Path, value: Any, shaped: bool) -> None:
    """Seen: one person's age of [1] made all ages of its 1,024 lines missing, so that none of these persons trained."""
    age = Column("age", "number", low=0.0, high=100.0, shape=(2,)) if shaped else AGE
    task, path = task_of(age, ILL, person="patient"), tmp_path / "records.jsonl"
    own: list[Any] = [[n, n + 0.5] if shaped else n for n in range(40)]
    own[7] = [True, 7] if shaped else True
    people = [{"patient": f"p{n}", "age": each, "ill": n % 2} for n, each in enumerate(own)]
    ages = []
    for more in ([], [{"patient": "one more", "age": value, "ill": 0}]):
        path.write_text("\n".join(map(json.dumps, [*people, *more])))
        config = DataConfig(source="jsonl", path=str(path), bad_rows="quarantine", max_bad_share=0.9)
        ages.append(load_records(task, config).take(np.arange(40)))
    assert all(np.array_equal(ages[0][name], ages[1][name]) for name in ages[0])


def test_a_column_of_lists_of_which_a_batch_has_none_refuses_no_other(tmp_path: Path) -> None:
    """Seen: the one person of a last batch, without a list, had the whole table refused."""
    task, path = task_of(Column("age", "number", high=100.0, shape=(2,)), ILL), tmp_path / "x.jsonl"
    lines = [{"age": [1, 2], "ill": n % 2} for n in range(ROWS)]
    path.write_text("\n".join(map(json.dumps, [*lines, {"age": None, "ill": 0}])))
    config = DataConfig(source="jsonl", path=str(path), person="row", bad_rows="quarantine")
    assert len(load_records(task, config).persons) == ROWS


def test_what_can_just_be_read_and_not_be_written_again_is_no_text() -> None:
    """Seen: a value nested as deep as JSON can be read ended the reading of its whole table."""
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    assert cells_of([deep, "x"], numeric=False).to_pylist() == ["", "x"]
