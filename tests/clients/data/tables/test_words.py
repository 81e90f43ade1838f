"""What a single cell means."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovfed.clients.data.tables import words
from sovfed.clients.data.tables.words import Rules, Words, fold, person_name
from sovfed.federation.tasks.columns import Column, target


@pytest.mark.parametrize(
    ("cell", "decimal", "value"),
    [
        ("1", ".", 1), (" -2.5 ", ".", -2.5), ("+3", ".", 3), (".5", ".", 0.5), ("5.", ".", 5), ("1e-3", ".", 0.001),
        ("−4", ".", -4), ("1,5", ",", 1.5), ("-0,25e2", ",", -25), ("7", ",", 7),
    ],
)  # fmt: skip
def test_numbers(cell: str, decimal: str, value: float) -> None:
    assert Rules(decimal).number(cell) == (value, "")


@pytest.mark.parametrize(
    ("cell", "decimal", "fault"),
    [
        ("", ".", words.MISSING), ("N/A", ".", words.MISSING), ("k.A.", ".", words.MISSING), ("1,5", ".", words.NUMBER),
        ("1.5", ",", words.NUMBER), ("1 000", ".", words.NUMBER), ("5 mg", ".", words.NUMBER),
        ("0x10", ".", words.NUMBER), ("１", ".", words.NUMBER), ("infinity", ".", words.NUMBER),
        ("<0.2", ".", words.LIMIT), (">= 5", ".", words.LIMIT), ("<", ".", words.NUMBER),
        ("1e9999", ".", words.NUMBER), ("1,5,0", ",", words.NUMBER),
    ],
)  # fmt: skip
def test_what_is_no_number(cell: str, decimal: str, fault: str) -> None:
    value, told = Rules(decimal).number(cell)
    assert told == fault
    assert math.isnan(value)


@settings(max_examples=50)
@given(st.text(max_size=30))
def test_no_cell_breaks_a_rule(cell: str) -> None:
    rules = Rules()
    for value, fault in (rules.number(cell), rules.day(cell)):
        assert bool(fault) == math.isnan(value)
    code, fault = Words(target("ill", "no", "yes"), rules).code(cell)
    assert (code in (0, 1)) == (fault == "")
    assert fold(fold(cell)) == fold(cell) or not cell.isascii()
    assert person_name(person_name(cell)) == person_name(cell)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_every_number_that_python_writes_is_read(value: float) -> None:
    assert Rules().number(repr(value)) == (value, "")


def test_a_categorys_own_word_stands_before_a_word_for_missing() -> None:
    column = Column("diet", "category", categories=("none", "vegan"))
    assert Words(column, Rules()).code("None") == (0, "")
    assert Words(column, Rules()).code("n/a") == (-1, words.MISSING)


def test_yes_and_no_mean_classes_only_where_the_classes_say_so() -> None:
    assert Words(target("ill", "nein", "ja"), Rules()).code("TRUE") == (1, "")
    assert Words(target("free", "yes", "no"), Rules()).code("false") == (1, "")
    assert Words(target("grade", "benign", "malignant"), Rules()).code("yes") == (-1, words.UNKNOWN)
    assert Words(target("grade", "benign", "malignant"), Rules()).code("1") == (1, "")
