"""What a schema says of records: the arrays they are stored in, their bounds, and what no schema may say."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import bind
from sovfed.federation.tasks.columns import CODES, NUMBERS, Column, Schema, number, target

WARD = ("surgery", "medicine", "geriatrics")
MIXED = Schema(
    (
        number("age", 0, 120),
        Column("ward", "category", categories=WARD),
        Column("scan", "image", shape=(1, 4, 6)),
        Column("smokes", "boolean"),
        number("dose", -5, 5, missing="mean", indicator=True),
        Column("word", "tokens", low=0.0, high=30_000.0, shape=(7,)),
        Column("note", "text", shape=(9,)),
        number("pulse", 0, 300, shape=(3,)),
        Column("sex", "category", categories=("f", "m"), missing="category"),
        Column("born", "date", low=-30_000.0, high=30_000.0),
        target("ill", "no", "yes"),
        number("stay", 0, 365, role="target"),
        Column("next", "tokens", low=0.0, high=9.0, shape=(2,), role="target"),
    ),
    person="patient",
)


def test_scalars_stand_side_by_side_and_arrays_under_their_names() -> None:
    assert [column.name for column in MIXED.numbers] == ["age", "smokes", "dose", "born"]
    assert [column.name for column in MIXED.codes] == ["ward", "sex"]
    assert MIXED.stored() == {
        NUMBERS: (np.dtype("f4"), (4,)),
        CODES: (np.dtype("i2"), (2,)),
        "scan": (np.dtype("u1"), (1, 4, 6)),
        "word": (np.dtype("i4"), (7,)),
        "note": (np.dtype("i2"), (9,)),
        "pulse": (np.dtype("f4"), (3,)),
        "ill": (np.dtype("i8"), ()),
        "stay": (np.dtype("f4"), ()),
        "next": (np.dtype("i8"), (2,)),
    }


def test_every_value_that_a_column_can_hold_fits_its_stored_type() -> None:
    for column in MIXED.columns:
        for bound in column.bounds:
            assert float(np.array(bound).astype(column.dtype)) == bound, column.name


@pytest.mark.parametrize("count", [1, 2, 5, 300])
def test_made_up_records_are_stored_as_the_schema_says_and_lie_within_bounds(count: int) -> None:
    table = MIXED.made_up(count)
    assert list(table) == list(MIXED.stored())
    for name, (dtype, shape) in MIXED.stored().items():
        assert (table[name].dtype, table[name].shape) == (dtype, (count, *shape))
    by_name = {column.name: table[column.name] for column in (*MIXED.shaped, *MIXED.targets)}
    by_name |= {column.name: table[NUMBERS][:, place] for place, column in enumerate(MIXED.numbers)}
    by_name |= {column.name: table[CODES][:, place] for place, column in enumerate(MIXED.codes)}
    for column in MIXED.columns:
        low, high = column.bounds
        assert low <= by_name[column.name].min() <= by_name[column.name].max() <= high
        if count > 2 and column.role == "input":
            assert (by_name[column.name][0] == low).all() and (by_name[column.name][1] == high).all()
    if count == 300:
        assert set(table["ill"].tolist()) == {0, 1} and abs(table["ill"].mean() - 0.5) < 0.01


def test_made_up_records_are_the_same_for_the_same_seed_alone() -> None:
    one, again, other = MIXED.made_up(20), MIXED.made_up(20), MIXED.made_up(20, seed=1)
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one[NUMBERS], other[NUMBERS])
    assert len(np.unique(one[NUMBERS], axis=0)) == 20  # not one lazy row, repeated


def test_cells_of_a_table_are_named_after_their_place() -> None:
    assert list(number("age", 0, 1).cells()) == ["age"]
    assert list(number("p", 0, 1, shape=(2, 2)).cells()) == ["p_0_0", "p_0_1", "p_1_0", "p_1_1"]


def test_classes_are_the_words_of_the_one_target_that_has_some() -> None:
    assert Schema((number("a", 0, 1), target("y", "a", "b", "c"))).classes == ("a", "b", "c")
    assert Schema((number("a", 0, 1), Column("y", "boolean", role="target"))).classes == ("no", "yes")
    assert Schema((number("a", 0, 1), number("y", 0, 1, role="target"))).classes == ()
    assert MIXED.classes == ()


def test_a_schema_survives_json() -> None:
    assert bind(Schema, json.loads(json.dumps(MIXED.to_dict()))) == MIXED


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"low": 1.0, "high": 1.0}, "low 1 is not below high 1"),
        ({"low": float("nan")}, "is not below"),
        ({"name": ".codes"}, "begins with no dot"),
        ({"name": " x"}, "no spaces around it"),
        ({"shape": (0,)}, r"shape \[0\]"),
        ({"shape": (4096, 4097)}, r"shape \[4096, 4097\]"),
        ({"shape": (10**18,) * 50_000}, r"shape \[1000000000000000000, .{,160}\]$"),  # their product takes 5 s
        ({"kind": "image"}, "image needs a shape"),
        ({"kind": "boolean", "shape": (2,)}, "a boolean has none"),
        ({"kind": "category"}, "at least one"),
        ({"categories": ("a",)}, "categories are for a category"),
        ({"kind": "category", "categories": ("a", "a")}, "unequal ones"),
        ({"kind": "category", "categories": tuple(map(str, range(10_001)))}, "up to 10000"),
        ({"missing": "category"}, "is for categories"),
        ({"kind": "category", "categories": ("a",), "missing": "mean"}, "is for numbers"),
        ({"missing": "mean", "scaling": "none"}, "numbers that are scaled"),
        ({"missing": "mean", "role": "target"}, "only a scalar input may be missing"),
        ({"missing": "constant", "shape": (2,)}, "only a scalar input may be missing"),
        ({"plausible": (2.0, 1.0)}, "plausible is"),
        ({"plausible": (2.0,)}, "plausible is"),
    ],
)
def test_a_column_that_says_what_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Column(**{"name": "x", **wrong})
    with pytest.raises(ConfigError):  # as it comes from a file
        bind(Column, {"name": "x", **wrong})


@pytest.mark.parametrize(
    ("columns", "person"),
    [
        ((number("x1", 0, 1), number("x1", 0, 2)), ""),
        ((number("caf\u00e9", 0, 1), number("cafe\u0301", 0, 1)), ""),  # the same to whoever reads them
        ((number("x", 0, 1),), ""),  # what a model is given of all scalars
        ((number("age", 0, 1),), "age"),
        (tuple(number(f"c{place}", 0, 1) for place in range(10_001)), ""),
    ],
)
def test_names_that_would_be_taken_for_one_another_are_refused(columns: tuple[Column, ...], person: str) -> None:
    with pytest.raises(ValueError, match="names must be unequal"):
        Schema(columns, person)


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (number("age", 0, 120, unit="years"), "0 to 120"),
        (Column("seen", "date", low=-14610, high=10956), "1930-01-01 to 1999-12-31"),
        (Column("ever", "date", low=-1e30, high=1e30), "-1e+30 to 1e+30"),
        (Column("smoker", "boolean"), "no or yes"),
    ],
)
def test_bounds_are_told_as_people_write_them(column: Column, text: str) -> None:
    assert column.reach == text
