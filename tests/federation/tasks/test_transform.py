"""From stored values to what a model is given: every number by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from sovfed.federation.config import LEAST_SPREAD
from sovfed.federation.tasks.columns import CODES, NUMBERS, Column, Schema, Table, number, target
from sovfed.federation.tasks.transform import Transform, values_of

NAN = float("nan")
TWO = Transform(Schema((number("age", 0, 100), number("dose", -1, 3), target("ill", "no", "yes"))))
AGES: Table = {NUMBERS: np.array([[0.0, 1.0], [50.0, 3.0], [100.0, -1.0], [75.0, 2.0]], np.float32), "ill": np.zeros(4)}
# u: middle 50, half 50 → −1, 0, 1, 0.5; middle 1, half 2 → 0, 1, −1, 0.5


def tensors(**columns: list[object]) -> dict[str, Tensor]:
    """Stored values as they lie on the device; "numbers" and "codes" are the packed ones."""
    types = {"numbers": torch.float32, "codes": torch.int16}
    return {
        {"numbers": NUMBERS, "codes": CODES}.get(name, name): torch.tensor(values, dtype=types.get(name))
        for name, values in columns.items()
    }


def one_of(*columns: Column) -> Transform:
    return Transform(Schema((*columns, target("ill", "no", "yes"))))


def given(transform: Transform, scale: list[float] | None = None, **columns: list[object]) -> list[object]:
    """The one tensor of inputs."""
    bound = transform.bound(transform.public_scale if scale is None else np.array(scale))
    inputs = bound.inputs(tensors(**columns))
    assert isinstance(inputs, Tensor)
    found: list[object] = inputs.tolist()
    return found


def test_the_profile_is_present_sum_and_squares_of_u() -> None:
    assert TWO.profile(AGES).tolist() == [4, 4, 0.5, 0.5, 2.25, 2.25]
    assert (TWO.size, TWO.profile_size, TWO.width) == (2, 6, 2)


def test_profiles_of_parts_add_up_and_none_gives_zeros() -> None:
    parts = [{name: part[rows] for name, part in AGES.items()} for rows in (slice(0, 1), slice(1, 4), slice(4, 4))]
    assert np.sum([TWO.profile(part) for part in parts], axis=0).tolist() == TWO.profile(AGES).tolist()
    assert TWO.profile(parts[2]).tolist() == [0.0] * 6


def test_the_scale_is_mean_and_deviation_of_u() -> None:
    # mean 0.5 / 4; deviation √(2.25 / 4 − 0.125²) = √0.546875
    assert TWO.scale(TWO.profile(AGES)).tolist() == pytest.approx([0.125, 0.125, 0.7395100, 0.7395100])


def test_a_missing_value_is_in_no_sum() -> None:
    column = number("dose", 0, 10, missing="mean")
    table: Table = {NUMBERS: np.array([[NAN], [10.0], [NAN], [5.0]], np.float32), "ill": np.zeros(4)}
    assert one_of(column).profile(table).tolist() == [2.0, 1.0, 1.0]  # u: 1, 0
    assert one_of(column).scale(np.array([2.0, 1.0, 1.0])).tolist() == [0.5, 0.5]


def test_no_scale_leaves_the_declared_bounds_whatever_a_profile_says() -> None:
    """Institutions refuse such a scale: one sum that was led astray must not end the run."""
    assert TWO.scale(np.zeros(6)).tolist() == [0, 0, 1, 1]
    wild = TWO.scale(np.array([1.0, 1.0, 9.0, -9.0, 1e9, -5.0]))
    assert wild.tolist() == [1.0, -1.0, 2.0, 1.0]
    for scale in (wild, TWO.scale(np.zeros(6)), TWO.public_scale):
        assert TWO.admits(scale, LEAST_SPREAD) == ""


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ([0.0, 1.01, 1.0, 1.0], "mean"),
        ([0.0, NAN, 1.0, 1.0], "mean"),
        ([0.0, -1.01, 1.0, 1.0], "mean"),
        ([0.0, 0.0, 1.9e-3, 1.0], "deviation"),
        ([0.0, 0.0, 1.0, 2.01], "deviation"),
        ([0.0, 0.0, NAN, 1.0], "deviation"),
        ([0.0, 0.0, -1.0, 1.0], "deviation"),
        ([1.0, -1.0, 2e-3, 2.0], ""),
    ],
)
def test_what_a_federation_s_own_values_could_not_have_is_told(scale: list[float], said: str) -> None:
    found = TWO.admits(np.array(scale), 1e-3)
    assert said in found and bool(found) == bool(said)


def test_a_column_that_never_varied_is_scaled_by_its_bounds_and_one_that_hardly_did_by_the_least_spread() -> None:
    """Its weight stays as it began: by the least spread, another value to predict from would count for hundreds."""
    profile = np.array([100, 100, 50, 50, 25, 25.0001])  # u = 0.5 in all records; and nearly so
    mean, other, still, narrow = TWO.scale(profile)
    assert (mean, other) == (0.5, 0.5) and still == 1.0 and narrow == 2 * LEAST_SPREAD
    assert TWO.admits(TWO.scale(profile), LEAST_SPREAD) == ""


def test_numbers_are_standardised_in_units_of_u() -> None:
    # scale: means 0.2 and −0.5, deviations 0.5 and 0.25; u of (75, 2) is (0.5, 0.5): 0.3 / 0.5, 1 / 0.25
    rows = given(TWO, [0.2, -0.5, 0.5, 0.25], numbers=[[75.0, 2.0], [60.0, 0.0]])
    assert rows == [pytest.approx([0.6, 4.0], rel=1e-5), pytest.approx([0.0, 0.0], abs=1e-6)]


def test_of_a_column_with_a_long_tail_the_logarithm_is_scaled() -> None:
    """Bounds 10 to 109: ln 1 = 0 to ln 100, so middle and half ln 10; 19 is the middle."""
    long = one_of(number("age", 0, 100), number("bnp", 10, 109, scaling="log"))
    assert given(long, numbers=[[50.0, 19.0], [100.0, 109.0], [0.0, 10.0]]) == [
        [0.0, pytest.approx(0.0, abs=1e-6)], [1.0, pytest.approx(1.0)], [-1.0, -1.0]
    ]  # fmt: skip
    table: Table = {NUMBERS: np.array([[50.0, 19.0], [50.0, 109.0]], np.float32), "ill": np.zeros(2)}
    assert long.profile(table).tolist() == pytest.approx([2, 2, 0, 1, 0, 1], abs=1e-6)
    assert long.scale(long.profile(table)).tolist() == pytest.approx([0, 0.5, 1.0, 0.5], abs=1e-6)
    scaled = long.affine(long.public_scale)[NUMBERS]
    back = values_of(long.schema, np.array([[0.5, -1.0]]) / scaled[1] + scaled[0])
    assert back.tolist() == [[75.0, pytest.approx(10.0)]]


def test_a_missing_number_with_a_long_tail_is_its_fill_or_the_mean_of_logarithms() -> None:
    filled = one_of(number("bnp", 0, 99, scaling="log", missing="constant", fill=9.0))
    assert given(filled, numbers=[[NAN], [9.0]]) == [[pytest.approx(0.0, abs=1e-6)]] * 2
    mean = one_of(number("bnp", 0, 99, scaling="log", missing="mean"))
    assert given(mean, [0.5, 1.0], numbers=[[NAN], [99.0]]) == [[0.0], [pytest.approx(0.5)]]


def test_a_logarithm_is_of_a_number_that_is_an_input_by_itself() -> None:
    for wrong in (Column("day", "date"), number("y", 0, 9, role="target"), number("bnp", 0, 9, shape=(2,))):
        with pytest.raises(ValueError, match="scaling 'log' is for a number"):
            dataclasses.replace(wrong, scaling="log")


def test_the_public_scale_is_the_bounds_alone() -> None:
    assert given(TWO, numbers=[[0.0, 3.0], [50.0, 1.0], [75.0, 0.0]]) == [[-1, 1], [0, 0], [0.5, -0.5]]
    assert TWO.public_scale.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        TWO.public_scale[0] = 1.0


def test_a_column_scaled_by_its_bounds_or_not_at_all_has_no_place_in_the_scale() -> None:
    transform = one_of(number("a", 0, 10, scaling="bounds"), number("b", 0, 10, scaling="none"), number("c", 0, 10))
    assert (transform.size, [column.name for column in transform.scaled]) == (1, ["c"])
    assert given(transform, [0.5, 0.5], numbers=[[10.0, 10.0, 10.0], [0.0, 0.0, 5.0]]) == [[1, 10, 1], [-1, 0, -1]]


@pytest.mark.parametrize(
    ("missing", "fill", "expected"),
    [
        ("mean", 0.0, 0.0),
        ("constant", 10.0, 1.0),
        ("constant", 0.0, -3.0),
    ],  # u 1 and −1: (1 − 0.5) / 0.5 and −1.5 / 0.5
)
def test_what_stands_for_a_missing_number(missing: str, fill: float, expected: float) -> None:
    column = number("dose", 0, 10, missing=missing, fill=fill)
    rows = given(one_of(column), [0.5, 0.5], numbers=[[NAN], [5.0]])
    assert rows == [[pytest.approx(expected, abs=1e-6)], [pytest.approx(-1.0)]]


def test_an_indicator_stands_behind_the_numbers_and_says_what_was_missing() -> None:
    transform = one_of(
        number("a", 0, 10, missing="mean", indicator=True), number("b", 0, 10),
        number("c", 0, 10, missing="constant", fill=10.0, indicator=True), number("d", 0, 10, missing="mean"),
    )  # fmt: skip
    assert transform.width == 6
    rows = given(transform, numbers=[[NAN, 5.0, NAN, NAN], [10.0, 0.0, 5.0, 10.0]])
    assert rows == [[0, 0, 1, 0, 1, 1], [1, -1, 0, 1, 0, 0]]


def test_a_value_that_is_not_missing_is_untouched_by_what_stands_for_the_others() -> None:
    plain, filled = one_of(number("a", 0, 7)), one_of(number("a", 0, 7, missing="constant", fill=3.0))
    values: list[object] = [[0.1], [3.3], [6.9]]
    assert given(plain, [0.3, 0.7], numbers=values) == given(filled, [0.3, 0.7], numbers=values)


def test_a_category_is_one_hot_and_a_missing_one_its_own_or_nothing() -> None:
    ward = Column("ward", "category", categories=("a", "b", "c"), missing="category")
    sex = Column("sex", "category", categories=("f", "m"), missing="constant")
    transform = one_of(ward, sex)
    assert (transform.width, transform.size) == (4 + 2, 0)
    rows = given(transform, codes=[[0, 1], [2, 0], [-1, 1], [1, -1], [-1, -1]])
    assert rows == [
        [1, 0, 0, 0, 0, 1],
        [0, 0, 1, 0, 1, 0],
        [0, 0, 0, 1, 0, 1],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ]


def test_numbers_indicators_and_categories_come_as_one_input_in_that_order() -> None:
    ward = Column("ward", "category", categories=("a", "b"))
    transform = one_of(ward, number("age", 0, 2, missing="mean", indicator=True), Column("smokes", "boolean"))
    assert given(transform, numbers=[[2.0, 1.0], [NAN, 0.0]], codes=[[1], [0]]) == [[1, 1, 0, 0, 1], [0, -1, 1, 1, 0]]


def test_arrays_come_by_name_beside_the_packed_input() -> None:
    scan = Column("scan", "image", shape=(1, 1, 2), scaling="bounds")
    words = Column("words", "tokens", low=0.0, high=9.0, shape=(2,))
    transform = one_of(number("age", 0, 10), scan, words)
    stored = tensors(numbers=[[10.0]], words=[[3, 9]]) | {"scan": torch.tensor([[[[0, 255]]]], dtype=torch.uint8)}
    inputs = transform.bound(transform.public_scale).inputs(stored)
    assert isinstance(inputs, dict) and list(inputs) == ["x", "scan", "words"]
    assert inputs["x"].tolist() == [[1.0]]
    assert inputs["scan"].tolist() == [[[[-1.0, 1.0]]]] and inputs["scan"].dtype == torch.float32
    assert inputs["words"] is stored["words"]


def test_an_array_of_numbers_has_a_scale_for_each_of_its_values() -> None:
    transform = one_of(number("pulse", 0, 10, shape=(1, 2)), number("age", 0, 10))
    table: Table = {
        NUMBERS: np.array([[10.0], [0.0]], np.float32), "pulse": np.array([[[10.0, 5.0]], [[5.0, 5.0]]], np.float32),
        "ill": np.zeros(2),
    }  # fmt: skip
    assert [column.name for column in transform.scaled] == ["age", "pulse"]
    assert transform.profile(table).tolist() == [2, 2, 2, 0, 1, 0, 2, 1, 0]
    bound = transform.bound(np.array([0.0, 0.5, 0.0, 1.0, 0.5, 2.0]))
    inputs = bound.inputs({name: torch.from_numpy(part) for name, part in table.items()})
    assert isinstance(inputs, dict)
    assert inputs["pulse"].tolist() == [[[1.0, 0.0]], [[-1.0, 0.0]]]


def test_targets_are_scaled_as_numbers_and_left_alone_as_classes() -> None:
    stay, ill = number("stay", 0, 10, role="target"), target("ill", "no", "yes")
    transform = Transform(Schema((number("age", 0, 10), stay, ill)))
    stored = tensors(numbers=[[5.0], [5.0]], stay=[10.0, 2.5], ill=[1, 0])
    targets = transform.bound(np.array([0.0, 0.5, 1.0, 0.25])).targets(stored)
    assert isinstance(targets, dict)
    assert targets["stay"].tolist() == [2.0, -4.0]
    assert targets["ill"] is stored["ill"]
    assert TWO.bound(TWO.public_scale).targets(stored) is stored["ill"]


def test_a_boolean_enters_as_a_number_and_is_learnt_as_one_of_two() -> None:
    transform = Transform(Schema((Column("smokes", "boolean"), Column("ill", "boolean", role="target"))))
    assert transform.size == 1
    bound = transform.bound(transform.public_scale)
    stored = {NUMBERS: torch.tensor([[0.0], [1.0]]), "ill": torch.tensor([0.0, 1.0])}
    assert isinstance(inputs := bound.inputs(stored), Tensor) and inputs.tolist() == [[-1.0], [1.0]]
    assert isinstance(targets := bound.targets(stored), Tensor) and targets.tolist() == [0.0, 1.0]


def test_stored_values_are_never_written_into() -> None:
    stored = tensors(numbers=[[75.0, 2.0], [NAN, 0.0]])
    before = stored[NUMBERS].clone()
    TWO.bound(TWO.public_scale).inputs(stored)
    one_of(number("a", 0, 1, missing="mean"), number("b", 0, 1)).bound(np.array([0.0, 0, 1, 1])).inputs(stored)
    assert torch.equal(stored[NUMBERS], before) or bool((stored[NUMBERS].isnan() == before.isnan()).all())
    assert stored[NUMBERS][0].tolist() == [75.0, 2.0]


def test_a_column_of_huge_values_keeps_its_digits() -> None:
    """In the column's own unit float32 would lose them: around 2e9 its steps are 128 wide."""
    transform = one_of(number("money", 0, 4e9))
    assert given(transform, numbers=[[3e9], [1e9]]) == [[0.5], [-0.5]]
    assert transform.profile({NUMBERS: np.array([[3e9]], np.float32), "ill": np.zeros(1)}).tolist() == [1.0, 0.5, 0.25]
