"""A change of 16 bits a value leads both sides to the same model, and to nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from sovfed.federation.changes import BLOCK, MOST_VALUES, change_of, change_size, changed
from sovfed.federation.errors import ProtocolError, TrainingError
from sovfed.federation.vectors import MAX_PARAMETERS


def test_a_change_is_whole_numbers_of_a_power_of_two() -> None:
    """1 = 0.5 · 2^1, so the step of its block is 2^(1 − 15), which is told as −14 + 126."""
    change = change_of(np.array([1, -0.5, 2**-16], np.float32))
    assert change[:6].view("<i2").tolist() == [16_384, -8_192, 0]
    assert change[6:].tolist() == [112]
    assert changed(np.array([3, 3, 3], np.float32), change).tolist() == [4, 2.5, 3]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 20 * BLOCK + 7])
def test_every_value_is_within_a_step_of_its_block(size: int) -> None:
    generator = np.random.default_rng(size)
    difference = (generator.normal(size=size) * 10.0 ** generator.integers(-6, 3, size)).astype(np.float32)
    change = change_of(difference)
    assert change.size == change_size(size) == 2 * size + -(-size // BLOCK)
    came = changed(np.zeros(size, np.float32), change)
    for start in range(0, size, BLOCK):
        block = difference[start : start + BLOCK]
        assert np.abs(came[start : start + BLOCK] - block).max() <= 2 * np.abs(block).max() / 2**15


def test_nothing_and_the_smallest_numbers_change_nothing() -> None:
    for value in (0.0, -0.0, 1e-45):
        assert changed(np.ones(3, np.float32), change_of(np.full(3, value, np.float32))).tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_a_difference_that_is_no_number_has_no_change(value: float) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        change_of(np.array([0, value], np.float32))


def test_what_is_no_change_of_so_many_values_is_refused() -> None:
    change, base = change_of(np.ones(5, np.float32)), np.zeros(5, np.float32)
    for wrong in (change[:-1], np.append(change, np.uint8(0)), change[:0]):
        with pytest.raises(ProtocolError, match="expected 11 for 5 values"):
            changed(base, wrong)
    change[-1] = 255
    with pytest.raises(ProtocolError, match="more than a value may be"):
        changed(base, change)


def test_the_longest_change_is_no_longer_than_a_vector_may_be() -> None:
    assert change_size(MOST_VALUES) <= MAX_PARAMETERS
