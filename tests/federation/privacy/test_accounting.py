"""ε against published vectors, the analytic Gaussian formula, and Opacus' accountants."""

from __future__ import annotations

import math
from random import Random

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.accounting import (
    CERTIFICATE,
    DAILY,
    Accountant,
    accountant_version,
    calibrate_noise_multiplier,
    epsilon,
    gathered,
)
from sovfed.federation.privacy.events import Event

VECTORS = [  # noise multiplier, rate, count, delta, ε: dp-accounting and Microsoft's prv-accountant agree within 2e-4
    (1.1, 256 / 60000, 14062, 1e-5, 2.3817),
    (1.3, 250 / 60000, 3600, 1e-5, 0.8530),
    (4.0, 0.01, 10_000, 1e-5, 0.9470),
    (1.0, 0.01, 1_000, 1e-5, 1.8282),
    (0.8, 0.01, 10_000, 1e-6, 11.1832),
    (2.0, 0.1, 300, 1e-3, 2.9255),
    (0.6, 0.001, 5_000, 1e-5, 2.0550),
    (20.0, 0.2, 50, 1e-6, 0.2773),
    (5.0, 1.0, 100, 1e-5, 9.9973),
    (1.0, 1.0, 1, 1e-5, 4.3772),
]


def gaussian_epsilon(z: float, count: int, delta: float) -> float:
    """Balle and Wang 2018, arXiv:1805.06530, Theorem 8: the exact ε of `count` Gaussian releases of everybody."""
    mu = math.sqrt(count) / z

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)) - delta)

    return float(brentq(excess, 0, 500, xtol=1e-12))


@pytest.mark.parametrize(("z", "q", "count", "delta", "expected"), VECTORS)
def test_certificate_reproduces_the_vectors(z: float, q: float, count: int, delta: float, expected: float) -> None:
    assert epsilon([Event(z, q, count)], delta, CERTIFICATE) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("z", "q", "count", "delta", "expected"), VECTORS)
def test_daily_interval_errs_upwards_only_and_by_little(
    z: float, q: float, count: int, delta: float, expected: float
) -> None:
    assert expected - 2e-4 <= epsilon([Event(z, q, count)], delta) <= expected + 0.015


@pytest.mark.parametrize(("z", "count", "delta"), [(0.3, 1, 1e-6), (1.0, 1, 1e-5), (3.0, 200, 1e-4), (50.0, 9, 1e-9)])
def test_releases_of_everybody_match_the_analytic_formula_from_above(z: float, count: int, delta: float) -> None:
    exact = gaussian_epsilon(z, count, delta)
    assert exact - 1e-9 <= epsilon([Event(z, 1.0, count)], delta, CERTIFICATE) <= exact + 1e-4


@pytest.mark.parametrize(("z", "q", "count", "delta"), [(1.0, 0.01, 1000, 1e-5), (3.0, 0.1, 200, 1e-4)])
def test_opacus_bounds_from_above(z: float, q: float, count: int, delta: float) -> None:
    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history, prv.history = [(z, q, count)], [(z, q, count)]
    found = epsilon([Event(z, q, count)], delta, CERTIFICATE)
    assert found < rdp.get_epsilon(delta)
    assert found < prv.get_epsilon(delta) < found + 0.02  # its own error bound is 0.01


def test_growing_one_by_one_gives_what_all_at_once_gives() -> None:
    events = [Event(1.5, 0.05, 40), Event(3.0, 0.2, 7), Event(9.0, 1.0, 3), Event(2.0, 0.05, 11), Event(3.0, 0.2, 5)]
    grown = Accountant()
    for event in events:
        for _ in range(event.count):
            grown = grown.plus(Event(event.noise_multiplier, event.sampling_rate, 1))
    assert grown.epsilon(1e-5) == pytest.approx(epsilon(events, 1e-5), abs=1e-6)


def test_one_kind_in_pieces_is_exactly_one_kind_at_once() -> None:
    grown = Accountant().plus(*[Event(1.2, 0.02, 1)] * 20)
    assert grown.epsilon(1e-5) == epsilon([Event(1.2, 0.02, 20)], 1e-5)


def test_what_would_be_leaves_what_is() -> None:
    now = Accountant().plus(Event(2.0, 0.1, 10))
    before = now.epsilon(1e-5)
    assert now.plus(Event(1.0, 0.1, 50)).epsilon(1e-5) > before
    assert now.epsilon(1e-5) == before


def test_multipliers_of_everybody_merge_by_their_precisions() -> None:
    both = epsilon([Event(3.0, 1.0, 4), Event(2.0, 1.0, 1)], 1e-5, CERTIFICATE)
    assert both == pytest.approx(gaussian_epsilon(1 / math.sqrt(4 / 9 + 1 / 4), 1, 1e-5), abs=1e-4)


def test_joint_accounting_is_below_the_sum_of_epsilons() -> None:
    runs = [Event(2.0 + i / 10, 0.05, 100) for i in range(5)]
    assert epsilon(runs, 1e-5) < sum(epsilon([run], 1e-5) for run in runs)


def test_no_events_cost_nothing() -> None:
    assert epsilon([], 1e-5) == 0.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_out_of_range_is_refused_even_without_events(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta must lie in"):
        epsilon([], delta)


@pytest.mark.parametrize(
    "event",
    [
        Event(0.001, 1.0, 1),
        Event(0.01, 0.5, 1),
        Event(0.5, 0.5, 10**6),
        Event(5.0, 1e-6, 10**9),
        Event(1e6, 1e-9, 10**9),
    ],
)
def test_what_cannot_be_computed_is_infinite_not_small(event: Event) -> None:
    assert epsilon([event], 1e-5) == math.inf
    assert Accountant().plus(event, Event(2.0, 0.1, 1)).epsilon(1e-5) == math.inf


def test_a_delta_below_the_rounding_of_the_composition_is_infinite() -> None:
    assert epsilon([Event(1.0, 0.01, 1000)], 1e-13) == math.inf


@pytest.mark.parametrize("event", [Event(0.0, 0.1, 1), Event(math.nan, 0.1, 1), Event(1.0, 1.5, 1), Event(1.0, 0.1, 0)])
def test_events_without_meaning_are_refused(event: Event) -> None:
    with pytest.raises(PrivacyError, match="has no meaning"):
        epsilon([event], 1e-5)


def test_interval_out_of_range_is_refused() -> None:
    with pytest.raises(PrivacyError, match="interval"):
        Accountant(1.0)


@pytest.mark.parametrize(("target", "delta", "q", "steps"), [(3.0, 1e-5, 0.1, 200), (1.0, 1e-4, 1.0, 30)])
def test_calibration_meets_the_target_over_all_steps_and_barely(
    target: float, delta: float, q: float, steps: int
) -> None:
    z = calibrate_noise_multiplier(target, delta, q, steps)
    assert epsilon([Event(z, q, steps)], delta) <= target < epsilon([Event(z - 2e-4, q, steps)], delta)
    assert z == round(z, 4)


def test_calibration_of_everybody_matches_the_analytic_formula() -> None:
    z = calibrate_noise_multiplier(2.0, 1e-5, 1.0, 50, CERTIFICATE)
    exact = brentq(lambda multiplier: gaussian_epsilon(multiplier, 50, 1e-5) - 2.0, 5, 100)
    assert exact - 1e-9 <= z <= exact + 2e-3


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_calibration_refuses_a_target_without_meaning(target: float) -> None:
    with pytest.raises(PrivacyError, match="target"):
        calibrate_noise_multiplier(target, 1e-5, 0.1, 10)


def test_calibration_refuses_what_no_noise_reaches() -> None:
    with pytest.raises(PrivacyError, match="no noise reaches"):
        calibrate_noise_multiplier(1.0, 1e-13, 0.1, 1000)


def test_gdp_would_have_underestimated() -> None:
    """The central-limit accountant (Bu et al. 2020, μ = q√(T(e^(1/z²) − 1))) at z = 0.6, q = 0.001, T = 5,000."""
    z, q, count, delta = 0.6, 0.001, 5_000, 1e-5
    mu = q * math.sqrt(count * math.expm1(1 / z**2))
    assert gaussian_epsilon(1 / mu, 1, delta) < 0.6 * epsilon([Event(z, q, count)], delta)


def test_version_names_the_accountant() -> None:
    assert accountant_version().startswith("PLD, dp-accounting 0.")
    assert DAILY > CERTIFICATE


@pytest.mark.parametrize("seed", range(3))
def test_gathered_events_tell_no_less_and_are_few(seed: int) -> None:
    random = Random(seed)
    some = [
        Event(10 ** random.uniform(0.5, 3), 10 ** random.uniform(-3, -0.5), random.randint(1, 5)) for _ in range(60)
    ]
    many = [*some, *(Event(10 ** random.uniform(2, 6), 10 ** random.uniform(-9, -1), 1) for _ in range(400))]
    assert gathered(some[:20]) == sorted(some[:20])
    found = gathered(many)
    assert len(found) <= 24 + 64 and sum(event.count for event in found) == sum(event.count for event in many)
    for event in many:  # each is dominated by one of those that are kept
        assert any(
            kept.noise_multiplier <= event.noise_multiplier and kept.sampling_rate >= event.sampling_rate
            for kept in found
        )
    exact = epsilon(some, 1e-6)
    assert exact <= epsilon(gathered(some), 1e-6) <= exact + 0.3


def test_gathered_events_take_the_least_noise_and_the_highest_rate() -> None:
    """The exact ones are rarer than the others, and so stand for none of them."""
    random = Random(1)
    costly = [Event(1.0 + number / 100, 0.01, 100) for number in range(24)]
    others = [Event(random.uniform(50, 100), random.uniform(0.02, 0.03), 1) for _ in range(200)]
    found = gathered([*costly, *others])
    assert set(costly) <= set(found) and len(found) <= 24 + 64
    for event in others:
        assert any(
            kept.noise_multiplier <= event.noise_multiplier and kept.sampling_rate >= event.sampling_rate
            for kept in found
        )
