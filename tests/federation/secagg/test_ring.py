from __future__ import annotations

import os
from math import ceil, log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovfed.federation.messages import Vector
from sovfed.federation.secagg.mask import SEGMENT_WORDS, Words
from sovfed.federation.secagg.ring import (
    COARSE,
    LANES,
    LARGEST_ERROR,
    Quantiser,
    Ring,
    dequantise,
    header_size,
    integer_sums,
    pack_header,
    unpack,
    unpack_metrics,
)


def quantise(ring: Ring, update: Vector, weight: int) -> tuple[Words, int]:
    words = np.empty(ring.words(update.size), np.uint64)
    quantiser = Quantiser(ring, update, weight, os.urandom(32))
    for segment, start in enumerate(range(0, words.size, SEGMENT_WORDS)):
        quantiser.quantise(segment, words[start : start + SEGMENT_WORDS])
    return words, quantiser.clipped


def error_bound(ring: Ring, survivors: int, total_weight: int) -> float:
    """Largest error of a coordinate of the weighted mean: one rounding step a survivor, and float32 of the clip."""
    value_bits = ring.bits - ceil(log2(ring.cohort))
    step = ring.clip / (2 ** (value_bits - 1) - 2) * ring.max_weight / total_weight
    error: float = survivors * step + 4 * ring.clip * float(np.finfo(np.float32).eps)
    return error


@pytest.mark.parametrize("bits", LANES)
@pytest.mark.parametrize("cohort", [3, 4, 5, 32])
@pytest.mark.parametrize("value", [-1e30, 1e30])
def test_the_honest_sum_never_leaves_its_lane(bits: int, cohort: int, value: float) -> None:
    """Everybody at the clip with the largest weight: the mean is the clip, in every lane of every word."""
    ring, size = Ring(bits, 0.5, 1000, cohort), 2 * LANES[bits] + 1
    total = np.zeros(ring.words(size), np.uint64)
    for _ in range(cohort):
        words, clipped = quantise(ring, np.full(size, value, np.float32), 1000)
        assert clipped == size
        total += words
    mean = dequantise(ring, total, size, cohort, 1000 * cohort)
    assert np.abs(mean - np.sign(value) * 0.5).max() <= error_bound(ring, cohort, 1000 * cohort)


@given(
    bits=st.sampled_from(sorted(LANES)),
    weights=st.lists(st.integers(1, 1000), min_size=3, max_size=6),
    size=st.integers(1, 400),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_weighted_mean_is_within_the_stated_bound(bits: int, weights: list[int], size: int, seed: int) -> None:
    ring, random = Ring(bits, 2.0, 1000, len(weights)), np.random.default_rng(seed)
    updates = random.uniform(-3, 3, (len(weights), size)).astype(np.float32)
    total = np.zeros(ring.words(size), np.uint64)
    for update, weight in zip(updates, weights, strict=True):
        total += quantise(ring, update, weight)[0]
    mean = dequantise(ring, total, size, len(weights), sum(weights))
    plain = np.average(np.clip(updates, -2, 2).astype(np.float64), axis=0, weights=weights)
    assert np.abs(mean - plain).max() <= error_bound(ring, len(weights), sum(weights))


def test_rounding_has_no_bias() -> None:
    """The mean of 200,000 roundings of one value, against a standard error of half a step at most."""
    ring, count, times = Ring(12, 1.0, 10, 4), 50_000, 4
    value, mean = np.float32(0.3 / float(ring.limit)), 0.0
    for _ in range(times):
        words, _ = quantise(ring, np.full(count, value, np.float32), 10)
        mean += dequantise(ring, words, count, 1, 10).astype(np.float64).mean() * float(ring.limit) / times
    assert abs(mean - 0.3) < 6 * 0.5 / np.sqrt(count * times) + 2**-16


@pytest.mark.parametrize("bits", [16, 32])
def test_rounding_is_independent_within_a_part_and_between_institutions(bits: int) -> None:
    """Correlations of 60,000 rounding errors, at six standard errors: to the neighbours, and of two institutions."""
    ring, count = Ring(bits, 1.0, 10, 4), 60_000
    update = np.random.default_rng(5).uniform(-1, 1, count).astype(np.float32) * np.float32(2.0 ** (8 - bits))
    exact, errors = update.astype(np.float64) * float(ring.limit), []
    for _ in range(2):
        words, _ = quantise(ring, update, 10)
        errors.append(unpack(words, bits, count).astype(np.float64) - ring.half - exact)
    first, second = (error / error.std() for error in errors)
    assert 0.2 < errors[0].std() < 0.6
    for left, right in ((first[1:], first[:-1]), (first, second)):
        assert abs(np.mean(left * right)) < 6 / np.sqrt(count)


@pytest.mark.parametrize("bits", COARSE)
def test_what_rounding_takes_and_keeps_is_sent_after_all(bits: int) -> None:
    """Over several segments and parts, values of which most are far below a step: the sums differ by half a step."""
    ring, size, rounds = Ring(bits, 1.0, 1000, 10), SEGMENT_WORDS * LANES[bits] + 70_001, 12
    update = np.random.default_rng(bits).normal(0, 0.2 / float(ring.limit), size).astype(np.float32)
    sent, owed = np.zeros(size), np.zeros(size, np.float32)
    for _ in range(rounds):
        words, given = np.empty(ring.words(size), np.uint64), update + owed
        quantiser = Quantiser(ring, given, 1000, bytes(32), owed)
        for segment, start in enumerate(range(0, words.size, SEGMENT_WORDS)):
            quantiser.quantise(segment, words[start : start + SEGMENT_WORDS])
        sent += dequantise(ring, words, size, 1, 1000)
    np.testing.assert_allclose(sent + owed, rounds * update.astype(np.float64), atol=1e-5)
    assert np.abs(owed).max() <= 0.5001 * ring.step(1000)
    assert np.count_nonzero(sent) > size / 2


@pytest.mark.parametrize("bits", COARSE)
def test_who_has_too_few_records_for_a_step_is_not_rounded_away_for_ever(bits: int) -> None:
    """Its clip would cut what it is owed before that comes to half a step; so it is rounded at random, as elsewhere."""
    ring = Ring(bits, 1.0, 10_000, 5)
    few, enough = int(0.4 * 10_000 / float(ring.limit)), 1 + int(0.75 * 10_000 / float(ring.limit))
    assert ring.settles(enough) and not ring.settles(few)
    update, sent = np.full(70_000, 0.3, np.float32), np.zeros(70_000)
    for _ in range(20):
        sent += dequantise(ring, quantise(ring, update, few)[0], update.size, 1, few)
    assert sent.mean() / 20 == pytest.approx(0.3, rel=0.1)
    assert ring.relative_error(np.zeros(5, np.float32), 5, 5 * few) == LARGEST_ERROR


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000, 299_999])
def test_a_value_that_is_not_finite_counts_as_zero_and_the_others_as_they_are(bad: float, place: int) -> None:
    ring, update = Ring(32, 1.0, 1000, 4), np.full(300_000, 0.25, np.float32)
    update[place] = bad
    words, clipped = quantise(ring, update, 1000)
    assert clipped == 1
    found = dequantise(ring, words, update.size, 1, 1000)
    assert found[place] == pytest.approx(0.0, abs=1e-6)
    assert np.delete(found, place) == pytest.approx(0.25, abs=1e-6)


@pytest.mark.parametrize("bits", LANES)
@pytest.mark.parametrize("value", [2**31 - 1, -(2**31)])
def test_an_integer_beyond_its_lane_is_cut_to_it(bits: int, value: int) -> None:
    ring, size = Ring(bits, 1.0, 1000, 4), 2 * LANES[bits] + 1
    words = np.empty(ring.words(size), np.uint64)
    Quantiser(ring, np.full(size, value, np.int32), 1, bytes(32)).quantise(0, words)
    assert set(integer_sums(ring, words, size, 1).tolist()) == {int(np.sign(value)) * (ring.half - 2)}


def test_metrics_sum_in_fixed_point() -> None:
    values = [[0.25, -3.5, 1e6], [0.5, 1.25, -2e6], [-1.0, 0.0, 5e5]]
    total = sum((pack_header(10, row, 24) for row in values), np.zeros(header_size(3), np.uint64))
    assert total[0] == 3 and total[1] == 30 and not total[5:].any()
    assert unpack_metrics(total, 3, 24).tolist() == [-0.25, -2.25, -5e5]


@pytest.mark.parametrize("metric", [np.nan, np.inf, 2.0**31])
def test_metrics_that_do_not_fit_are_saturated(metric: float) -> None:
    expected = 0.0 if np.isnan(metric) else 2.0**30
    assert unpack_metrics(pack_header(1, [metric, -metric, 2.5], 24), 3, 24).tolist() == [expected, -expected, 2.5]


@pytest.mark.parametrize("members", [3, 10])
@pytest.mark.parametrize("spread", [1.0, 0.2, 0.03, 0.003])
def test_the_share_that_is_rounding_is_told_from_the_sum_alone(members: int, spread: float) -> None:
    """Against the exact mean, which no coordinator has; `spread` is the values' in steps of the ring times 30."""
    generator, ring = np.random.default_rng(members), Ring(16, 1.0, 1000, members)
    updates = [
        (30 * spread * ring.step(1000) * generator.standard_normal(200_000)).astype(np.float32) for _ in range(members)
    ]
    words = np.zeros(ring.words(200_000), np.uint64)
    for update in updates:
        words += quantise(ring, update, 1000)[0]
    mean = dequantise(ring, words, 200_000, members, 1000 * members)
    exact = np.mean([update.astype(np.float64) for update in updates], 0)
    actual = float(np.sqrt(np.square(mean - exact).sum() / np.square(exact).sum()))
    told = ring.relative_error(mean, members, 1000 * members)
    assert told == pytest.approx(actual, rel=0.25) if actual < 0.5 else told > 0.5
    assert ring.relative_error(np.zeros(5, np.float32), members, 1000) == 0.0
