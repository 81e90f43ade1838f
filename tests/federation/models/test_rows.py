"""Rows become what the schema stores, or an error that names column, count and rows and no value."""

from __future__ import annotations

import datetime

import numpy as np
import pandas
import pytest
from tests.federation.models.made_tasks import MIXED

from sovfed.federation.errors import DataError
from sovfed.federation.models.rows import made_up_rows, to_table
from sovfed.federation.tasks.columns import Column, Schema, number, target

ROWS: dict[str, list[object]] = {
    "age": [50, 99.5], "dose": [None, float("nan")], "flat": ["NA", 7], "smoker": [True, "NON"],
    "seen": [datetime.date(1970, 1, 31), "1970-02-01"], "ward": ["", "C"], "sex": ["m", " f "],
}  # fmt: skip
ARRAYS = Schema(
    (
        number("signal", -1, 1, shape=(3,)), Column("picture", "image", shape=(1, 1, 2)),
        Column("words", "tokens", high=9.0, shape=(2,)), Column("note", "text", shape=(6,)), target("t", "a", "b"),
    )
)  # fmt: skip


def test_rows_are_stored_by_hand() -> None:
    table = to_table(MIXED, ROWS)
    np.testing.assert_array_equal(
        table[".numbers"], np.array([[50, np.nan, np.nan, 1, 30], [99.5, np.nan, 7, 0, 31]], np.float32)
    )
    assert table[".codes"].tolist() == [[-1, 1], [2, 0]]
    assert {name: part.dtype for name, part in table.items()} == {
        name: kind for name, (kind, _) in MIXED.stored().items() if name != "outcome"
    }


def test_a_data_frames_columns_are_rows_too() -> None:
    frame = pandas.DataFrame(ROWS)
    frame["seen"] = pandas.to_datetime(["1970-01-31", "1970-02-01"])
    found, expected = to_table(MIXED, dict(frame)), to_table(MIXED, ROWS)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("age", [50, "4l"], "column 'age': 1 of 2 values are no number, row 2"),
        ("age", [-1, 101], r"column 'age': 2 of 2 rows outside \[0, 100\] years, rows 1, 2"),
        ("age", [None, 3], "column 'age': missing in 1 of 2 rows, row 1"),
        ("age", ["inf", 3], r"outside \[0, 100\]"),
        ("smoker", ["maybe", "secret"], "column 'smoker': 2 of 2 values are no boolean, rows 1, 2"),
        ("seen", ["31.12.1999", "2000-01-01"], "column 'seen': 1 of 2 values are no date, row 1"),
        ("sex", ["f", ""], "column 'sex': missing in 1"),
        ("sex", ["f", "secret"], "column 'sex': 1 of 2 values are no known category, row 2"),
        ("sex", ["f"], r"the columns are of \[1, 2\] rows"),
    ],
)
def test_what_does_not_fit_is_named_without_its_value(column: str, values: list[object], told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        to_table(MIXED, {**ROWS, column: values})
    assert "secret" not in str(error.value) and "4l" not in str(error.value)


def test_a_missing_column_has_its_neighbour_named() -> None:
    with pytest.raises(DataError, match=r"no column 'age'.*'agee'"):
        to_table(MIXED, {"agee" if name == "age" else name: values for name, values in ROWS.items()})


def test_arrays_stand_cell_by_cell_or_as_lists() -> None:
    rows: dict[str, list[object]] = {
        "signal": [[0.5, 1, -1]], "picture_0_0_0": ["3"], "picture_0_0_1": [255], "words": [np.array([1, 9])],
        "note": ["häß"],
    }  # fmt: skip
    table = to_table(ARRAYS, rows)
    assert table["signal"].tolist() == [[0.5, 1, -1]] and table["picture"].tolist() == [[[[3, 255]]]]
    assert table["words"].tolist() == [[1, 9]]
    assert table["note"].tolist() == [[105, 196, 165, 196, 160, 0]]  # the bytes of UTF-8, each plus one
    for column, wrong, told in (
        ("signal", [[1, 2]], "not arrays of shape"), ("signal", [[0, 0, 2]], "outside"),
        ("words", [[1, 10]], "outside"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=told):
            to_table(ARRAYS, {**rows, column: wrong})
    with pytest.raises(DataError, match="no column 'picture_0_0_1'"):
        to_table(ARRAYS, {name: values for name, values in rows.items() if name != "picture_0_0_1"})


@pytest.mark.parametrize("schema", [MIXED, ARRAYS])
def test_the_example_that_is_made_up_is_taken(schema: Schema) -> None:
    rows = made_up_rows(schema, 4)
    table = to_table(schema, rows)
    assert all(len(part) == 4 for part in table.values())
