"""What is added to a sum, and that the accountant's event covers it."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2, norm

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.discrete_gaussian import discrete_gaussian, smoothing
from sovfed.federation.privacy.events import Event
from sovfed.federation.privacy.noise import Units, added_delta, distributed_event, release, share_variance
from sovfed.federation.privacy.sampling import Entropy


def key(text: str) -> Entropy:
    return lambda size: hashlib.sha256(text.encode()).digest()[:size]


@pytest.mark.parametrize("clip", [1.0, 0.3, 7.5, 1e-6, 12345.678])
def test_unit_is_a_power_of_two_just_below_the_clip(clip: float) -> None:
    unit = 2.0 ** Units(clip, 10, bits=20).exponent
    assert clip * 2.0**-21 < unit <= clip * 2.0**-20


@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_rounding_moves_neighbours_apart_by_no_more_than_the_sensitivity(clip: float) -> None:
    """The worst case: every coordinate of the first sum is just below a tie and the person tips all of them."""
    units = Units(clip, 10_000, bits=8)
    unit = 2.0**units.exponent
    total = np.full(10_000, 0.4999999 * unit)
    person = np.full(10_000, clip / 100)  # norm: the clip
    assert np.linalg.norm(person) == pytest.approx(clip)
    moved = np.linalg.norm((units.quantise(total + person) - units.quantise(total)).astype(float))
    assert moved <= units.sensitivity == pytest.approx(clip / unit + 100 + 1)
    assert moved > clip / unit  # the clip alone would not cover it


def test_rounding_and_back_is_exact_on_the_grid_and_half_a_unit_off_it() -> None:
    units = Units(0.3, 5, bits=12)
    unit = 2.0**units.exponent
    values = np.array([0.0, 3.25, -7.4, 1e4, -0.49]) * unit
    assert units.quantise(values).tolist() == [0, 3, -7, 10_000, 0]
    assert np.array_equal(units.dequantise(units.quantise(values)), np.array([0.0, 3, -7, 10_000, 0]) * unit)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_values_that_no_unit_can_carry_are_refused(bad: float) -> None:
    with pytest.raises(PrivacyError, match="not finite, or too large"):
        Units(1.0, 2).quantise(np.array([0.0, bad]))


def test_a_sum_of_another_shape_is_refused() -> None:
    with pytest.raises(PrivacyError, match="shape"):
        Units(1.0, 3).quantise(np.zeros((3, 1)))


@pytest.mark.parametrize(
    ("clip", "size", "bits"),
    [(0.0, 1, 20), (-1.0, 1, 20), (math.nan, 1, 20), (math.inf, 1, 20), (1, 0, 20), (1, 1, 33)],
)
def test_units_without_meaning_are_refused(clip: float, size: int, bits: int) -> None:
    with pytest.raises(PrivacyError):
        Units(clip, size, bits)


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 3.0, 2.1782, 100.0])
@pytest.mark.parametrize(("size", "bits"), [(650, 16), (1_000_000, 20), (1, 24)])
@pytest.mark.parametrize("shares", [1, 3, 8, 200])
def test_shares_made_for_an_event_are_charged_as_that_event(
    noise_multiplier: float, size: int, bits: int, shares: int
) -> None:
    units = Units(0.7, size, bits)
    variance = share_variance(noise_multiplier, units, shares)
    total = (Fraction(noise_multiplier) * Fraction(units.sensitivity)) ** 2
    assert total <= shares * variance - 4 < total + shares + 4
    event, distance = distributed_event(variance, shares, units, 0.1, 5)
    assert event.noise_multiplier == pytest.approx(noise_multiplier, rel=1e-6)
    assert event.noise_multiplier >= noise_multiplier * (1 - 1e-14)
    assert (event.sampling_rate, event.count) == (0.1, 5)
    assert distance < 5 * size * 2.0**-100


def kairouz_rho(size: int, share_std: float, shares: int, sensitivity: float) -> float:
    """Kairouz, Liu, Steinke 2021, Theorem 1 (units of one): ρ of the sum of `shares` discrete Gaussians, ε²/2."""
    tau = 10 * sum(math.exp(-2 * math.pi**2 * share_std**2 * k / (k + 1)) for k in range(1, shares))
    scaled = sensitivity / (math.sqrt(shares) * share_std)
    return min(scaled**2 + tau * size / 2, (scaled + tau * math.sqrt(size)) ** 2) / 2


@pytest.mark.parametrize(("noise_multiplier", "shares", "size"), [(3.0, 8, 650), (1.0, 3, 10**6), (0.7, 100, 10**4)])
def test_charge_agrees_with_the_theorem_on_sums_of_discrete_gaussians(
    noise_multiplier: float, shares: int, size: int
) -> None:
    units = Units(1.0, size, bits=16)
    variance = share_variance(noise_multiplier, units, shares)
    event, _ = distributed_event(variance, shares, units, 1.0)
    rho = kairouz_rho(size, math.sqrt(variance), shares, units.sensitivity)
    assert rho == pytest.approx(1 / (2 * noise_multiplier**2), rel=1e-6)  # the Gaussian's
    assert rho <= 1 / (2 * event.noise_multiplier**2)  # and the charge is above it


def test_rounding_at_random_makes_a_gaussian_discrete() -> None:
    """Step (3) of the proof, where the bound is large enough to see: R with variance 1 on N(0, 3) against N_Z(4)."""
    grid = np.linspace(-16, 16, 64_001)
    density = norm.pdf(grid, scale=math.sqrt(3)) * (grid[1] - grid[0])
    values = np.arange(-20, 21)
    kernel = np.exp(-((grid[None, :] - values[:, None]) ** 2) / 2)
    found = (kernel / kernel.sum(axis=0) * density).sum(axis=1)
    exact = np.exp(-(values**2) / 8.0)
    distance = np.abs(found - exact / exact.sum()).sum() / 2
    assert distance <= smoothing(1.0)
    assert np.abs(found - norm.pdf(values, scale=math.sqrt(3))).max() > 1e-3  # and not by any other variance


@pytest.mark.parametrize("shares", [1, 8])
def test_noise_scale_of_released_zeros(shares: int) -> None:
    """χ² on 10⁵ zeros: a scale wrong by 1 % would fail with p = 5e-4, one by 5 % with p = 1e-108."""
    units = Units(2.0, 100_000, bits=20)
    variance = share_variance(1.5, units, shares)
    total = sum(discrete_gaussian(100_000, variance, key(f"scale {i}")) for i in range(shares))
    energy = float(np.sum((np.asarray(total) / (1.5 * units.sensitivity)) ** 2))
    assert 1e-3 < chi2.cdf(energy, 100_000) < 1 - 1e-3
    assert 1.5 * units.sensitivity * 2.0**units.exponent == pytest.approx(3.0, rel=1e-3)  # z·C


def test_release_is_the_sum_with_noise_on_the_grid() -> None:
    total = np.random.default_rng(0).normal(size=10_000) * 50
    found = release(total, 1.0, 2.0, key("release"), bits=16)
    units = found / 2.0 ** Units(1.0, 10_000, 16).exponent
    assert np.array_equal(units, np.rint(units))
    assert np.std(found - total) == pytest.approx(2.0, rel=0.03)
    again = release(total + 1.0, 1.0, 2.0, key("release"), bits=16)
    assert np.array_equal(again - found, np.ones(10_000))  # the noise does not depend on the sum


def test_releases_differ_without_a_fixed_key() -> None:
    assert not np.array_equal(release(np.zeros(100), 1.0, 1.0), release(np.zeros(100), 1.0, 1.0))


@pytest.mark.parametrize(("multiplier", "shares"), [(0.0, 1), (-1.0, 1), (math.nan, 1), (math.inf, 1), (1.0, 0)])
def test_noise_without_meaning_is_refused(multiplier: float, shares: int) -> None:
    with pytest.raises(PrivacyError, match="no noise"):
        share_variance(multiplier, Units(1.0, 10), shares)


def test_shares_too_small_for_the_proof_are_refused() -> None:
    with pytest.raises(PrivacyError, match="4 bits do not suit"):
        share_variance(1.0, Units(1.0, 1, bits=4), 100)
    with pytest.raises(PrivacyError, match="cannot be charged"):
        distributed_event(15, 4, Units(1.0, 1), 1.0)


def test_distance_enters_delta() -> None:
    assert added_delta(0.0, 1e-30) == pytest.approx(2e-30)
    _, distance = distributed_event(4**20, 6, Units(1.0, 10**6), 0.1, 10_000)
    assert added_delta(8.0, distance) < 1e-19
    assert isinstance(distributed_event(4**20, 6, Units(1.0, 10), 0.1)[0], Event)
