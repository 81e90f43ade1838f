"""Private scores: what an interval covers, what is told of few, and what one record's score is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.clients.orders.house import TASK

from sovfed.federation.errors import ProtocolError
from sovfed.federation.messages import PrivateRequest
from sovfed.federation.metrics.bounded import MOST, bounded_names, bounded_scores
from sovfed.federation.metrics.classes import BinaryMetrics, ClassMetrics
from sovfed.federation.metrics.labels import MultiLabelMetrics
from sovfed.federation.metrics.others import TextMetrics
from sovfed.federation.metrics.regression import RegressionMetrics
from sovfed.federation.privacy.discrete_gaussian import discrete_gaussian
from sovfed.federation.statistics.scores import Scores, scores_of, told_scores

DRAWS = 6_000
UNITS = 2**8  # of the noise, in one


def coverage(persons: int, deviation: float, share: float, spread: float) -> float:
    """The share of draws whose interval holds the true mean: persons drawn anew, discrete Gaussian noise as released.

    Scores are yes and no if `spread` is 1, and nearer to their mean if it is less.
    """
    generator = np.random.default_rng(7)
    noise = discrete_gaussian(2 * DRAWS, round((deviation * UNITS) ** 2)).reshape(DRAWS, 2) / UNITS
    held = 0
    for first, second in noise:
        scores = share + spread * ((generator.random(persons) < share) - share)
        vector = np.array([persons + first, (scores - 0.5).sum() + second])
        told = told_scores(Scores(("accuracy",)), vector, deviation, 1.0)
        low, high = told["intervals"]["accuracy"]
        held += low <= share <= high
    return held / DRAWS


@pytest.mark.parametrize(
    ("persons", "deviation", "share"),
    [(60, 5, 0.5), (200, 3.3, 0.9), (200, 12, 0.9), (1_000, 30, 0.97), (400, 40, 0.7)],
)
def test_intervals_cover_the_truth_in_95_of_100_draws_with_the_noise(
    persons: int, deviation: float, share: float
) -> None:
    """Nor are they so wide that they say nothing.

    The noise has no seed. True coverage is 0.948 to 0.972: both bounds are five standard errors of 6,000 draws off.
    """
    assert 0.93 <= coverage(persons, deviation, share, 1.0) <= 0.985


def test_intervals_of_losses_cover_at_least_as_often() -> None:
    assert coverage(300, 10, 0.3, 0.4) >= 0.95


def test_an_interval_without_the_noise_s_part_would_be_too_short() -> None:
    """The noise is most of it here: Wilson's alone, which knows nothing of noise, covers 6 in 10."""
    from sovfed.federation.metrics.intervals import wilson

    generator, held = np.random.default_rng(7), 0
    for first, second in generator.normal(0, 30, (DRAWS, 2)):
        persons = 400 + first
        low, high = wilson((generator.random(400) < 0.8).sum() + second + first / 2, persons)
        held += low <= 0.8 <= high
    assert held / DRAWS < 0.75 < 0.93 < coverage(400, 30, 0.8, 1.0)


@pytest.mark.parametrize("persons", [9.9, 39.0, -50.0])
def test_nothing_is_told_of_fewer_persons_than_noise_alone_may_be(persons: float) -> None:
    deviation = 1.0 if persons < 10 else 20.0
    told = told_scores(Scores(("accuracy", "loss")), np.array([persons, 1.0, 1.0]), deviation, 1.0)
    assert told["records"] is None and not told["metrics"] and not told["intervals"]


def test_what_is_told_is_in_the_metrics_own_unit() -> None:
    told = told_scores(Scores(("mae", "loss")), np.array([100.0, -40.0, -25.0]), 0.5, 12.0)
    assert told["records"] == 100
    expected = {"mae": 0.1 * MOST["mae"] * 12.0, "loss": 0.25 * MOST["loss"]}
    assert told["metrics"] == pytest.approx(expected)
    for name, value in told["metrics"].items():
        low, high = told["intervals"][name]
        assert low < value < high


def test_a_record_s_scores_are_shares_by_hand() -> None:
    losses = np.array([0.0, 2.0, 99.0], np.float32)
    binary = bounded_scores(BinaryMetrics(), np.array([[1.0], [-1.0], [3.0]]), np.array([1, 1, 0]), losses)
    assert binary.tolist() == [[1.0, 0.0], [0.0, 0.5], [0.0, 1.0]]
    classes = bounded_scores(ClassMetrics(3), np.eye(3) * 5, np.array([0, 2, 2]), losses)
    assert classes[:, 0].tolist() == [1.0, 0.0, 1.0]
    numbers = bounded_scores(RegressionMetrics(), np.array([[0.0], [0.0], [50.0]]), np.array([1.0, -2.0, 0.0]), losses)
    assert numbers[:, 0].tolist() == [0.25, 0.5, 1.0]
    labels = {"a": np.array([1, 0, 1]), "b": np.array([0, 0, 1])}
    exact = bounded_scores(MultiLabelMetrics(("a", "b")), np.array([[1, -1], [1, -1], [2, 2.0]]), labels, losses)
    assert exact[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert bounded_names(TextMetrics()) == ("loss",)
    assert bounded_scores(TextMetrics(), np.zeros((3, 4)), np.zeros(3), losses).tolist() == [[0.0], [0.5], [1.0]]


def test_what_is_no_number_is_the_worst_score_and_never_more() -> None:
    losses = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert bounded_scores(TextMetrics(), np.zeros((3, 4)), np.zeros(3), losses).tolist() == [[1.0], [1.0], [0.0]]


def asked(**changes: object) -> PrivateRequest:
    scores = Scores.of(TASK.metrics)
    request = PrivateRequest(
        run="7", grant="choice", round=1, task=TASK.name, mechanism="distributed", rounds=2, steps=1, spare=0,
        noise_multiplier=5.0, sampling_rate=1.0, clip=scores.clip, delta=1e-6, honest=3, grid_bits=8, batch=10.0,
        seed=0, local_epochs=1, batch_size=32, learning_rate=0.1, model=np.zeros(TASK.parameters, np.float32),
        normalisation="own", digest=TASK.digest, candidates=f"{'0' * 64},{'1' * 64}", scores=scores.size,
        scale=TASK.transform.public_scale,
    )  # fmt: skip
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"clip": 1.0}, {"sampling_rate": 0.5}, {"rounds": 1}, {"mechanism": "institution"}, {"mechanism": "silo"},
        {"scores": 2}, {"statistics": "malignant"}, {"candidates": "0" * 64},
    ],
)  # fmt: skip
def test_noise_that_is_not_for_what_is_asked_is_refused(changes: dict[str, object]) -> None:
    scores_of(asked(), TASK.metrics)
    with pytest.raises(ProtocolError, match="scores with"):
        scores_of(asked(**changes), TASK.metrics)
