"""Persons are sampled independently, at no more than the rate, from the keystream that the vectors describe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.sampling import Keystream, at_most, poisson_sample

VECTORS = Path(__file__).parents[2] / "vectors" / "privacy" / "persons.json"


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text()), ids=lambda case: case["name"])
def test_known_answers(case: dict[str, Any]) -> None:
    found = poisson_sample(case["persons"], case["rate"], lambda size: bytes.fromhex(case["key"])[:size])
    assert found.tolist() == case["taken"]


def test_keystream_is_aes_256_in_counter_mode() -> None:
    """NIST's AESAVS has E(0…0) under the zero key of 256 bits."""
    words = np.empty(2, "<u8")
    Keystream(bytes).fill(words)
    assert words.tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_keystream_goes_on_where_it_stopped() -> None:
    whole, parts = np.empty(100_000, "<u8"), np.empty(100_000, "<u8")
    Keystream(bytes).fill(whole)
    stream = Keystream(bytes)
    for start, end in ((0, 0), (0, 3), (3, 70_001), (70_001, 100_000)):
        stream.fill(parts[start:end])
    assert np.array_equal(whole, parts)


def test_every_call_draws_a_fresh_key() -> None:
    asked: list[int] = []

    def entropy(size: int) -> bytes:
        asked.append(size)
        return os.urandom(size)

    first, second = (set(poisson_sample(1000, 0.5, entropy).tolist()) for _ in range(2))
    assert asked == [32, 32]
    assert first != second  # equal with probability 2^-1000


def test_a_short_key_is_refused() -> None:
    with pytest.raises(PrivacyError, match="16 bytes"):
        poisson_sample(10, 0.5, lambda size: bytes(16))


def test_count_and_pairs_are_binomial() -> None:
    """10^6 persons at 0.1: the count within 4 standard deviations, and neighbours taken together as if independent."""
    taken = np.zeros(1_000_000)
    taken[poisson_sample(taken.size, 0.1, lambda size: b"k" * size)] = 1
    assert abs(taken.sum() - 1e5) < 4 * np.sqrt(9e4)
    assert abs(np.sum(taken[:-1] * taken[1:]) - 1e4) < 4 * np.sqrt(1e4)


def test_edges() -> None:
    assert poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(0, 0.5).size == 0
    assert poisson_sample(100, 2.0**-65).size == 0  # below what 64 bits can say: nobody, never more than the rate


@pytest.mark.parametrize(("persons", "rate"), [(-1, 0.5), (5, 0.0), (5, -0.1), (5, 1.01), (5, float("nan"))])
def test_rates_out_of_range_are_refused(persons: int, rate: float) -> None:
    with pytest.raises(PrivacyError, match="cannot sample"):
        poisson_sample(persons, rate)


def test_of_each_owner_so_many_records_are_drawn_and_each_as_often_as_another() -> None:
    owners = np.array([7, 3, 7, 7, 3, 9, 7])
    entropy, times = np.random.default_rng(0).bytes, np.zeros(len(owners))
    for _ in range(3_000):
        drawn = at_most(owners, 2, entropy)
        assert (np.diff(drawn) > 0).all()
        assert [np.count_nonzero(owners[drawn] == owner) for owner in (3, 7, 9)] == [2, 2, 1]
        times[drawn] += 1
    assert times[[1, 4, 5]].tolist() == [3_000] * 3
    assert np.abs(times[owners == 7] - 1_500).max() < 5 * np.sqrt(3_000 / 4)  # two of four


def test_what_is_drawn_of_a_person_may_be_all_or_nobody_s_but_not_nothing() -> None:
    assert at_most(np.array([4, 4, 2]), 3).tolist() == [0, 1, 2]
    assert at_most(np.empty(0, np.int64), 1).size == 0
    with pytest.raises(PrivacyError, match="at least one"):
        at_most(np.array([1]), 0)
