"""The binder takes exactly what a dataclass declares and refuses everything else by its full key."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovfed.federation.errors import ConfigError, ProtocolError
from sovfed.federation.schema import bind, bounded, choice, nearest


@dataclasses.dataclass(frozen=True)
class Inner:
    share: float = bounded(0.5, 0.0, 1.0, unit="of the cohort")
    colour: str = choice("red", ("red", "green"))

    def __post_init__(self) -> None:
        if self.colour == "green" and self.share == 0.0:
            raise ValueError("green needs a share")


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = bounded(low=1, high=10)
    name: str | None = bounded(None, 1, 5)
    inner: Inner = Inner()
    places: tuple[str, ...] = bounded((), 1, 3)
    limits: dict[str, int] = dataclasses.field(default_factory=dict)
    on: bool = False
    token: bytes = bounded(b"", 0, 2)
    absent: tuple[str, ...] = bounded((), words=True)


def test_what_fits_is_bound_with_nested_groups_lists_and_mappings() -> None:
    values = {"count": 3, "inner": {"share": 0.25}, "places": ["a", "b"], "limits": {"x": 1}, "token": b"ab"}
    assert bind(Outer, values) == Outer(3, None, Inner(0.25), ("a", "b"), {"x": 1}, False, b"ab")


def test_a_list_of_words_takes_whole_numbers_for_their_digits_and_nothing_else() -> None:
    assert bind(Outer, {"count": 1, "absent": ["k.A.", -99]}).absent == ("k.A.", "-99")
    for other in (1.5, True, None):
        with pytest.raises(ConfigError, match=r"absent\[0\]"):
            bind(Outer, {"count": 1, "absent": [other]})


def test_a_dataclass_that_is_already_built_is_kept() -> None:
    assert bind(Outer, {"count": 1, "inner": Inner(0.1)}).inner == Inner(0.1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing key 'count'"),
        ({"count": 1, "naem": "x"}, "unknown key 'naem' (did you mean 'name'?)"),
        ({"count": 1, 7: "x"}, "unknown key '7'"),
        ({"count": 0}, "'count' 0 is outside [1, 10]"),
        ({"count": 11}, "'count' 11 is outside [1, 10]"),
        ({"count": None}, "'count' must be int, got None"),
        ({"count": 1.0}, "'count' must be int, got 1.0 (float)"),
        ({"count": True}, "'count' must be int, got True (bool)"),
        ({"count": "1"}, "'count' must be int, got '1' (str)"),
        ({"count": 1, "on": 1}, "'on' must be bool, got 1 (int)"),
        ({"count": 1, "name": ""}, "'name' length 0 is outside [1, 5]"),
        ({"count": 1, "name": "abcdef"}, "'name' length 6 is outside [1, 5]"),
        ({"count": 1, "token": b"abc"}, "'token' length 3 is outside [0, 2]"),
        ({"count": 1, "places": "abc"}, "'places' must be a list, got 'abc'"),
        ({"count": 1, "places": ["a", 2]}, "'places[1]' must be str, got 2 (int)"),
        ({"count": 1, "limits": {"x": "y"}}, "'limits.x' must be int, got 'y' (str)"),
        ({"count": 1, "limits": [1]}, "'limits' must be a mapping"),
        ({"count": 1, "inner": 3}, "'inner' must be a group of settings, got 3"),
        ({"count": 1, "inner": {"share": 1.5}}, "'inner.share' 1.5 is outside [0, 1] of the cohort"),
        ({"count": 1, "inner": {"share": math.nan}}, "'inner.share' must be finite, got nan"),
        ({"count": 1, "inner": {"share": math.inf}}, "'inner.share' must be finite, got inf"),
        ({"count": 1, "inner": {"colour": "gren"}}, "'inner.colour' is 'gren' (did you mean 'green'?)"),
        ({"count": 1, "inner": {"colour": "green", "share": 0}}, "inner: green needs a share"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_full_key(values: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(Outer, values)
    assert str(caught.value).startswith(message)


def test_the_caller_chooses_the_error_and_the_key_it_starts_with() -> None:
    with pytest.raises(ProtocolError, match=r"unknown key 'train\.x'"):
        bind(Outer, {"x": 1}, "train", ProtocolError)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_whole_number_beyond_a_float_is_no_float(sign: int) -> None:
    with pytest.raises(ConfigError, match="must be finite"):
        bind(Inner, {"share": sign * 10**400})


def test_a_long_value_is_not_told_whole() -> None:
    with pytest.raises(ConfigError) as told:
        bind(Inner, {"share": ["x" * 10_000]})
    assert len(str(told.value)) < 200


def test_an_integer_may_stand_for_a_float_and_nothing_else_is_converted() -> None:
    share = bind(Inner, {"share": 1}).share
    assert (share, type(share)) == (1.0, float)


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.lists(st.integers()), st.booleans()))
def test_any_value_is_bound_exactly_or_refused(value: Any) -> None:
    try:
        bound = bind(Outer, {"count": value})
    except ConfigError:
        assert type(value) is not int or not 1 <= value <= 10
    else:
        assert bound.count == value
        assert type(value) is int


def test_nearest_offers_the_closest_name_or_lists_all() -> None:
    assert nearest("fedadm", ("fedavg", "fedadam")) == " (did you mean 'fedadam'?)"
    assert nearest("zzz", ("b", "a")) == " (known: a, b)"
    assert nearest("zzz", ()) == " (known: none)"
