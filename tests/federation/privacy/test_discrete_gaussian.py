"""The sampler against independent vectors, the exact probabilities and its own proof's inequalities."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chisquare, kstest, norm

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy import discrete_gaussian as module
from sovfed.federation.privacy.discrete_gaussian import discrete_gaussian, sampler_distance, smoothing

VECTORS = Path(__file__).parents[2] / "vectors" / "privacy" / "discrete_gaussian.json"
Floats = npt.NDArray[np.float64]


def key(text: str) -> Callable[[int], bytes]:
    return lambda size: hashlib.sha256(text.encode()).digest()[:size]


def probabilities(variance: float, reach: int) -> Floats:
    """N_Z(variance) on −reach … reach, by definition."""
    weights = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("case", json.loads(VECTORS.read_text()), ids=lambda case: case["name"])
def test_known_answers(case: dict[str, Any]) -> None:
    found = discrete_gaussian(case["size"], int(case["variance"]), lambda size: bytes.fromhex(case["key"])[:size])
    assert found[:20].tolist() == case["first"]
    assert hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == case["sha256"]


@pytest.mark.parametrize("variance", [16, 400, 20_000, 131_073, 10**6])
def test_frequencies_fit_the_exact_probabilities(variance: int) -> None:
    size, reach = 1_000_000, int(15 * math.sqrt(variance))
    found = discrete_gaussian(size, variance, key(f"frequencies {variance}"))
    expected = size * probabilities(variance, reach)
    counts = np.bincount(found + reach, minlength=2 * reach + 1)
    common = expected >= 10
    pooled = [*counts[common], counts[~common].sum()], [*expected[common], expected[~common].sum()]
    assert chisquare(*pooled).pvalue > 1e-3


@pytest.mark.parametrize("bits", [16, 20, 24, 36])
def test_wide_noise_is_gaussian_in_shape_and_uniform_in_its_low_digits(bits: int) -> None:
    size, std = 400_000, 2.0**bits
    found = discrete_gaussian(size, 4**bits, key(f"wide {bits}"))
    assert kstest(found / std, "norm").pvalue > 1e-3
    for digit in (1, 64, 64**2):  # what each table puts in
        if 128 * digit <= std:  # beyond that the bell's own shape shows
            assert chisquare(np.bincount(found // digit % 64)).pvalue > 1e-3
    near = (found[:-1] // 7) % 8 * 8 + (found[1:] // 7) % 8
    assert chisquare(np.bincount(near)).pvalue > 1e-3


@pytest.mark.parametrize("variance", [16, 2**17, 4**20])
def test_moments_and_tails(variance: int) -> None:
    size, std = 2_000_000, math.sqrt(variance)
    scaled = discrete_gaussian(size, variance, key(f"moments {variance}")) / std
    for power, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(scaled**power) - expected) < 4 * math.sqrt(spread / size)
    for distance in (3.0, 4.0, 4.8):  # P(X ≥ k) is the normal's mass from k − ½ units on
        first = math.ceil(distance * std)
        tail = size * 2 * norm.sf((first - 0.5) / std)
        if variance == 16:
            tail = size * 2 * probabilities(variance, 60)[60 + first :].sum()
        assert abs(np.sum(np.abs(scaled) >= first / std) - tail) < 4 * math.sqrt(tail)


def test_every_call_is_independent() -> None:
    first, second = discrete_gaussian(100_000, 4**16), discrete_gaussian(100_000, 4**16)
    assert abs(np.corrcoef(first, second)[0, 1]) < 6 / math.sqrt(100_000)  # 2e-9 by chance
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 6 / math.sqrt(100_000)


@pytest.mark.parametrize("variance", [Fraction(16), Fraction(131_072), module.FINE_VARIANCE, Fraction(1_000_003, 7)])
def test_thresholds_are_the_distribution_function(variance: Fraction) -> None:
    table = module._table(variance)
    with mpmath.workdps(80):
        v = mpmath.mpf(variance.numerator) / variance.denominator
        below = mpmath.fsum(mpmath.exp(-(mpmath.mpf(x) ** 2) / (2 * v)) for x in range(-table.reach, -2))
        total = mpmath.jtheta(3, 0, mpmath.exp(-1 / (2 * v)))  # Σ over all integers
        assert abs(table.thresholds[table.reach - 3] - below / total * 2**128) < 2 ** (128 - 119)  # the cut tail
    assert table.thresholds == sorted(table.thresholds) and len(table.thresholds) == 2 * table.reach


@pytest.mark.parametrize("variance", [Fraction(16), module.FINE_VARIANCE])
def test_lazy_decisions_agree_with_a_search_on_128_bits_even_at_ties(variance: Fraction) -> None:
    table = module._table(variance)
    for at, threshold in enumerate(table.thresholds[:-1]):  # the value beyond a threshold starts exactly there
        for u, expected in ((threshold - 1, at), (threshold, at + 1)):
            if not 0 <= u < 2**128 or threshold in (table.thresholds[at - 1], table.thresholds[at + 1]):
                continue
            cell = np.array([u >> 112], np.uint16)
            more = np.array([[u >> 64 & 2**48 - 1 | 0xABCD << 48, u & 2**64 - 1]], np.uint64)
            least = table.cells[cell] - np.int16(module._OPEN)
            if table.cells[cell][0] > module._OPEN // 2:
                assert table.decide(least, cell, more)[0] == expected - table.reach
            else:  # the threshold is its cell's first number
                assert table.cells[cell][0] == expected - table.reach


def total_variation(first: Floats, second: Floats) -> float:
    return float(np.abs(first - second).sum() / 2)


@pytest.mark.parametrize(("radix", "coarse", "fine"), [(1, 2.0, 2.0), (2, 2.0, 8.0), (4, 1.5, 48.0), (8, 3.0, 96.0)])
def test_sum_of_two_is_as_near_to_one_as_the_bound_says(radix: int, coarse: float, fine: float) -> None:
    whole = radix**2 * coarse + fine
    v = coarse * fine / whole
    reach = int(12 * math.sqrt(whole))
    spread = np.zeros(2 * radix * reach + 1)
    spread[::radix] = probabilities(coarse, reach)
    found = np.convolve(spread, probabilities(fine, reach))
    middle = found.size // 2
    distance = total_variation(found[middle - reach : middle + reach + 1], probabilities(whole, reach))
    assert distance <= smoothing(v) + 1e-14
    if smoothing(v) > 1e-9:
        assert distance > smoothing(v) / 100  # the bound is about the right thing


@pytest.mark.parametrize("variance", [131_073, 10**6])
def test_two_tables_make_one_distribution(variance: int) -> None:
    coarse, fine = (float(part) for part in module._levels(variance))
    assert 64**2 * coarse + fine == pytest.approx(variance, rel=1e-15)
    reach = int(14 * math.sqrt(variance))
    spread = np.zeros(2 * reach + 1)
    spread[reach % 64 :: 64] = probabilities(coarse, reach // 64)
    found = np.convolve(spread, probabilities(fine, 4096))[4096:-4096]
    assert total_variation(found, probabilities(variance, reach)) < 1e-13


@pytest.mark.parametrize("variance", [16, 131_072, 131_073, 131_074, 4**16, 4**20, 4**24, 2**80])
def test_distance_is_below_what_the_module_states(variance: int) -> None:
    assert 2.0**-125 < sampler_distance(variance) < 2.0**-110


@pytest.mark.parametrize("variance", [0, 15, -5, 2**80 + 1])
def test_variances_outside_the_proof_are_refused(variance: int) -> None:
    with pytest.raises(PrivacyError, match="variance"):
        discrete_gaussian(10, variance)


def test_no_samples() -> None:
    assert discrete_gaussian(0, 4**20).shape == (0,)
