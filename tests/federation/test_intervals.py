"""Intervals of added metrics against scipy, and against the definitions over single records."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from sovfed.federation.metrics import (
    BinaryMetrics,
    ClassMetrics,
    Metric,
    MultiLabelMetrics,
    RegressionMetrics,
    SurvivalMetrics,
    TextMetrics,
    TokenMetrics,
)
from sovfed.federation.metrics.intervals import area_and_error, intervals, wilson


@pytest.mark.parametrize(
    "metrics",
    [
        BinaryMetrics(), ClassMetrics(3), TextMetrics(), TokenMetrics(), RegressionMetrics(),
        MultiLabelMetrics(("a", "b")), SurvivalMetrics("t", "e", (0.0, 1.0)),
    ],
    ids=lambda metrics: type(metrics).__name__,
)  # fmt: skip
def test_no_sum_that_an_institution_may_send_ends_a_run(metrics: Metric) -> None:
    """Seen: more right answers than records, or fewer than none in a bin, and no model was scored at all."""
    generator = np.random.default_rng(0)
    for trial in range(1_000):
        wild = generator.choice([0, 1, -1, 2, 10, 100, -100, 1e9, -1e9, 2.0**30, 1e-9, 0.5], metrics.size)
        near = np.abs(generator.normal(50, 40, metrics.size)) * generator.choice([1, 1, 1, -1], metrics.size)
        sums = wild if trial % 2 else near
        sums[0] = generator.choice([1, 10, 11, 12.5, 100, 1e9])
        told = [*metrics.summarise(sums).values(), *sum(intervals(metrics, sums).values(), ())]
        assert np.isfinite(told).all()


@pytest.mark.parametrize(
    "metrics", [BinaryMetrics(), ClassMetrics(3), RegressionMetrics(), MultiLabelMetrics(("a", "b"))],
    ids=lambda metrics: type(metrics).__name__,
)  # fmt: skip
def test_squares_of_what_is_too_large_end_no_run_either(metrics: Metric) -> None:
    """Python's `**` raises where a product is infinite: one institution's 1e200 ended every run in the clear."""
    generator = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for _ in range(1_000):
            sums = generator.choice([0, 1, -1, 100, 1e100, -1e100, 1e-100, 1e-300], metrics.size)
            metrics.summarise(sums)
            intervals(metrics, sums)


@pytest.mark.parametrize(("successes", "count"), [(0, 20), (7, 20), (166, 170), (500, 500)])
def test_the_interval_of_a_share_is_scipy_s(successes: int, count: int) -> None:
    expected = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert wilson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_error_of_an_auc_is_delong_s_over_all_pairs() -> None:
    """Placements of each record by a loop over pairs, ties counted half, as the paper defines them."""
    generator = np.random.default_rng(3)
    low, high = generator.integers(0, 12, 40), generator.integers(4, 16, 25)
    pairs = (high[:, None] > low[None]) + 0.5 * (high[:, None] == low[None])
    variance = pairs.mean(1).var(ddof=1) / len(high) + pairs.mean(0).var(ddof=1) / len(low)
    histograms = (np.bincount(scores, minlength=16).astype(float) for scores in (low, high))
    assert area_and_error(*histograms) == pytest.approx((pairs.mean(), variance**0.5))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """200 samples of 120 records, whose true AUC is Φ(1/√2) = 0.7602; at the resolution of 128 bins."""
    generator, metric, covered = np.random.default_rng(4), BinaryMetrics(), 0
    for _ in range(200):
        labels = np.arange(120) % 2
        logits = (generator.normal(size=120) + labels)[:, None].astype(np.float32)
        low, high = intervals(metric, metric.sums(logits, labels, np.zeros(120)))["auc"]
        covered += low <= 0.7602 <= high
    assert 180 <= covered <= 198


def test_intervals_hold_the_metric_and_shrink_with_records() -> None:
    generator, metric = np.random.default_rng(5), ClassMetrics(3)
    widths = []
    for count in (90, 9_000):
        labels = np.arange(count) % 3
        outputs = generator.normal(size=(count, 3)) + 1.5 * np.eye(3)[labels]
        sums = metric.sums(outputs.astype(np.float32), labels, np.zeros(count))
        told, found = metric.summarise(sums), intervals(metric, sums)
        assert all(low <= told[name] <= high for name, (low, high) in found.items())
        widths.append(found["auc"][1] - found["auc"][0])
    assert widths[1] < widths[0] / 5


def test_the_error_of_a_mean_error_is_that_of_a_mean() -> None:
    generator, metric = np.random.default_rng(6), RegressionMetrics()
    outputs, targets = generator.normal(size=(500, 1)), generator.normal(size=500)
    errors = np.abs(outputs[:, 0] - targets)
    low, high = intervals(metric, metric.sums(outputs, targets, np.zeros(500)), unit=2.0)["mae"]
    assert (high - low) / 2 == pytest.approx(2 * 1.96 * errors.std() / 500**0.5, rel=1e-4)


def test_where_the_sums_tell_no_spread_there_is_no_interval() -> None:
    assert intervals(TextMetrics(), np.array([10.0, 30.0, 40.0])) == {}
    assert intervals(BinaryMetrics(), np.zeros(BinaryMetrics().size)) == {}
