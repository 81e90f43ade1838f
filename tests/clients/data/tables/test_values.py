"""What becomes of a value depends on no other one of its batch."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.clients.data.cases import SMALL

from sovfed.clients.data import load_records
from sovfed.clients.data.tables.cells import names_of
from sovfed.clients.data.tables.values import cells_of
from sovfed.federation.config import DataConfig

VALUES = [7, 7.0, 7.5, True, "7", None, 2**53 + 1, Decimal("7.25"), Decimal("7.5"), [1], {"a": 1}, "ü", 1e300]


@pytest.mark.parametrize("value", VALUES)
def test_a_name_is_the_same_alone_and_beside_any_other(value: Any) -> None:
    alone = names_of(cells_of([value], numeric=False))[0][0].as_py()
    for other in VALUES:
        assert names_of(cells_of([value, other], numeric=False))[0][0].as_py() == alone


def test_numbers_stay_numbers_and_lists_beside_anything_else_stay_lists() -> None:
    assert cells_of([True, 2, 0.5, Decimal("1.5"), None], numeric=True).to_pylist() == [1.0, 2.0, 0.5, 1.5, None]
    assert cells_of([[1, 2.5], 3, "x", None, ["y"]], numeric=True).to_pylist() == [[1.0, 2.5], None, None, None, None]
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


def test_what_can_just_be_read_and_not_be_written_again_is_no_text() -> None:
    """Seen: a value nested as deep as JSON can be read ended the reading of its whole table."""
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    assert cells_of([deep, "x"], numeric=False).to_pylist() == ["", "x"]
