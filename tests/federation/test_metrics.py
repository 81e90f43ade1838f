"""Metrics from summed vectors against scikit-learn, which sees every score."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

from sovfed.federation.errors import ProtocolError
from sovfed.federation.metrics import (
    BinaryMetrics,
    ClassMetrics,
    Metric,
    MultiLabelMetrics,
    NoMetrics,
    RegressionMetrics,
    SurvivalMetrics,
    TextMetrics,
    auc,
    gain,
)
from sovfed.federation.tasks import summarise
from sovfed.federation.tasks.registry import get_task

Array = npt.NDArray[np.float64]


def _binary(count: int, seed: int, spread: float) -> tuple[Array, npt.NDArray[np.int64], Array]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    logits = (spread * (random.normal(size=count) + 1.5 * labels - 0.75))[:, None]
    losses = np.logaddexp(0.0, np.where(labels == 1, -logits[:, 0], logits[:, 0]))
    return logits, labels, losses


@pytest.mark.parametrize("spread", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("count", [254, 5000])
def test_binary_metrics_of_added_parts_equal_scikit_learns(count: int, spread: float) -> None:
    logits, labels, losses = _binary(count, 7, spread)
    metrics = BinaryMetrics()
    parts = np.array_split(np.arange(count), 4)
    total = np.sum([metrics.sums(logits[part], labels[part], losses[part]) for part in parts], axis=0)
    found = metrics.summarise(total)
    probability = 1 / (1 + np.exp(-logits[:, 0]))
    assert total.shape == (metrics.size,)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, logits[:, 0]), abs=4e-3)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, logits[:, 0] > 0))
    assert found["loss"] == pytest.approx(
        log_loss(labels, probability, labels=[0, 1]), rel=1e-5
    )  # scikit-learn clips p
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probability), rel=1e-9)
    assert found["ece"] == pytest.approx(_calibration_error(labels, probability), abs=0.02)


@pytest.mark.parametrize("spread", [30.0, 300.0])
def test_the_auc_of_a_model_that_is_as_sure_as_noise_makes_it_is_as_near(spread: float) -> None:
    """Seen: 0.927 for 0.980, since whatever lay beyond 20 was one."""
    logits, labels, losses = _binary(400, 11, spread)
    metrics = BinaryMetrics()
    found = metrics.summarise(metrics.sums(logits, labels, losses))
    assert found["auc"] == pytest.approx(roc_auc_score(labels, logits[:, 0]), abs=4e-3)


def _calibration_error(labels: npt.NDArray[np.int64], probability: Array) -> float:
    """By definition (Guo et al. 2017, equation 3), on the exact scores."""
    which = np.minimum((probability * 15).astype(int), 14)
    gaps = [abs(probability[which == b].mean() - labels[which == b].mean()) * (which == b).sum() for b in set(which)]
    return float(sum(gaps) / len(labels))


def test_class_metrics_of_added_parts_equal_scikit_learns() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 10, 2000)
    logits = random.normal(size=(2000, 10)) + 2.0 * np.eye(10)[labels]
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = -np.log(probability[np.arange(2000), labels])
    metrics = ClassMetrics(classes=10)
    total = metrics.sums(logits[:500], labels[:500], losses[:500]) + metrics.sums(
        logits[500:], labels[500:], losses[500:]
    )
    found = metrics.summarise(total)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, probability, multi_class="ovr"), abs=1e-3)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert found["loss"] == pytest.approx(log_loss(labels, probability))
    assert found["brier"] == pytest.approx(np.square(probability - np.eye(10)[labels]).sum(1).mean())
    top, correct = probability.max(1), logits.argmax(1) == labels
    assert found["ece"] == pytest.approx(_calibration_error(correct.astype(np.int64), top), abs=1e-9)


def test_auc_by_hand() -> None:
    # Negatives score 0, 1, 1; positives 1, 2: of 6 pairs 4 are won and 2 tied.
    assert auc(np.array([1, 2, 0]), np.array([0, 1, 1])) == pytest.approx(5 / 6)


def test_metrics_that_are_undefined_are_left_out() -> None:
    logits, losses = np.array([[0.3], [-0.2]]), np.ones(2)
    assert "auc" not in BinaryMetrics().summarise(BinaryMetrics().sums(logits, np.array([1, 1]), losses))
    assert BinaryMetrics().summarise(np.zeros(BinaryMetrics().size)) == {}
    assert ClassMetrics(3).summarise(np.zeros(ClassMetrics(3).size)) == {}
    assert NoMetrics().summarise(np.ones(1)) == {}


def test_extreme_scores_stay_inside_the_histogram() -> None:
    logits = np.array([[1e4], [-1e4]])
    found = BinaryMetrics().summarise(BinaryMetrics().sums(logits, np.array([1, 0]), np.zeros(2)))
    assert found["auc"] == 1.0
    assert found["brier"] == 0.0


def test_a_vector_of_another_task_is_refused() -> None:
    with pytest.raises(ProtocolError, match="expected"):
        summarise(get_task("heart"), np.zeros(3))


def test_a_gain_is_above_zero_where_the_metric_is_better_whichever_way_it_goes() -> None:
    assert gain("auc", 0.9, over=0.8) == pytest.approx(0.1)
    assert gain("bits_per_byte", 2.0, over=2.5) == 0.5
    assert gain("loss", 2.0, over=1.5) == -0.5
    assert gain("error", 2.0, over=1.5, metrics=_Own()) == -0.5


class _Own(NoMetrics):
    smaller = frozenset({"error"})


def test_regression_metrics_of_added_parts_equal_scikit_learns_in_the_targets_unit() -> None:
    random = np.random.default_rng(2)
    scaled = random.normal(size=900)
    outputs = (scaled + 0.4 * random.normal(size=900) + 0.1)[:, None]
    middle, deviation = 27.0, 4.5  # kg/m²
    metrics = RegressionMetrics()
    parts = np.array_split(np.arange(900), 3)
    total = np.sum([metrics.sums(outputs[part], scaled[part], np.ones(len(part))) for part in parts], axis=0)
    found = metrics.summarise(total, deviation)
    truth, predicted = middle + deviation * scaled, middle + deviation * outputs[:, 0]
    assert total.shape == (metrics.size,)
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, predicted))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(truth, predicted))
    assert found["r2"] == pytest.approx(r2_score(truth, predicted))
    assert found["loss"] == 1.0


def test_multilabel_metrics_of_added_parts_equal_scikit_learns() -> None:
    random = np.random.default_rng(4)
    truth = random.random((1500, 3)) < [0.2, 0.5, 0.7]
    outputs = random.normal(size=(1500, 3)) + 2.0 * truth - 1.0
    metrics = MultiLabelMetrics(("a", "b", "c"))
    total = np.zeros(metrics.size)
    for part in np.array_split(np.arange(1500), 4):
        targets = {name: truth[part, place].astype(np.float32) for place, name in enumerate("abc")}
        total += metrics.sums(outputs[part], targets, np.full(len(part), 0.25))
    found = metrics.summarise(total)
    assert found["auc"] == pytest.approx(roc_auc_score(truth, outputs, average="macro"), abs=2e-3)
    assert found["f1"] == pytest.approx(f1_score(truth, outputs > 0, average="micro"))
    assert found["exact_match"] == pytest.approx(accuracy_score(truth, outputs > 0))
    assert found["loss"] == 0.25


EDGES = (0.0, 1.0, 2.0, 4.0, 8.0)


def _survival(count: int, seed: int) -> tuple[Array, Array, Array]:
    """Logits of the true hazards, times and events: exponential with a rate of each one's own, censored at random."""
    random = np.random.default_rng(seed)
    rate = np.exp(random.normal(-1.5, 1.0, count))
    falls, leaves = random.exponential(1.0 / rate), random.uniform(0.0, 12.0, count)
    hazard = -np.expm1(-rate[:, None] * np.diff(EDGES))
    return np.log(hazard / (1.0 - hazard)), np.minimum(falls, leaves), (falls <= leaves).astype(np.float64)


def _harrell(risk: Array, time: Array, event: Array) -> float:
    """By definition (Harrell et al. 1982), over all pairs of which the earlier is an event."""
    earlier = (time[:, None] < time[None, :]) & (event[:, None] == 1)
    won = (risk[:, None] > risk[None, :]) + 0.5 * (risk[:, None] == risk[None, :])
    return float(won[earlier].mean())


def _cumulative_hazard(logits: Array) -> Array:
    return -np.cumsum(np.log1p(-1.0 / (1.0 + np.exp(-logits))), 1)


def test_concordance_of_added_parts_is_harrells_of_the_cells() -> None:
    logits, time, event = _survival(1200, 5)
    metrics = SurvivalMetrics("t", "e", EDGES)
    total = np.zeros(metrics.size)
    for part in np.array_split(np.arange(1200), 4):
        total += metrics.sums(logits[part], {"t": time[part], "e": event[part]}, np.ones(len(part)))
    found = metrics.summarise(total)
    cells = np.concatenate([low + (high - low) * np.arange(1, 11) / 10 for low, high in pairwise(EDGES)])
    risk, cell = _cumulative_hazard(logits)[:, -1], np.digitize(time, cells).astype(np.float64)
    assert found["concordance"] == pytest.approx(_harrell(risk, cell, event), abs=3e-3)
    assert found["concordance"] == pytest.approx(_harrell(risk, time, event), abs=0.015)
    assert found["loss"] == 1.0


def test_concordance_by_hand() -> None:
    # Falls in interval 0 with the highest risk, in 1 with the lowest, one censored in 2, one alive at the end.
    logits = np.repeat(np.array([[2.0], [-4.0], [0.0], [-2.0]]), 4, 1)
    targets = {"t": np.array([0.5, 1.5, 3.0, 9.0]), "e": np.array([1.0, 1.0, 0.0, 0.0])}
    found = SurvivalMetrics("t", "e", EDGES).summarise(
        SurvivalMetrics("t", "e", EDGES).sums(logits, targets, np.zeros(4))
    )
    assert found["concordance"] == pytest.approx(3 / 5)  # 3 pairs won of the first, 2 lost of the second


def test_the_brier_score_of_two_classes_is_twice_that_of_one_probability() -> None:
    logits, labels, losses = _binary(400, 3, 1.0)
    probability = 1 / (1 + np.exp(-logits[:, 0]))
    one, two = BinaryMetrics(), ClassMetrics(2)
    of_one = one.summarise(one.sums(logits, labels, losses))["brier"]
    of_two = two.summarise(two.sums(np.hstack([np.zeros_like(logits), logits]), labels, losses))["brier"]
    assert of_one == pytest.approx(brier_score_loss(labels, probability))
    assert of_two == pytest.approx(2 * of_one)


def test_the_brier_score_is_grafs_with_weights_of_kaplan_and_meier() -> None:
    logits, time, event = _survival(300, 6)
    metrics = SurvivalMetrics("t", "e", EDGES)
    found = metrics.summarise(metrics.sums(logits, {"t": time, "e": event}, np.ones(300)))
    survival, when, scores = np.exp(-_cumulative_hazard(logits)), np.digitize(time, EDGES[1:]), []
    uncensored = [1.0]  # before each interval
    for interval in range(4):
        staying = ((when >= interval) & ~((when == interval) & (event == 1))).sum()
        uncensored.append(uncensored[-1] * (1 - ((when == interval) & (event == 0)).sum() / staying))
    for edge in range(4):
        score = 0.0
        for person in range(300):
            if when[person] > edge:
                score += (1 - survival[person, edge]) ** 2 / uncensored[edge + 1]
            elif event[person]:
                score += survival[person, edge] ** 2 / uncensored[when[person]]
        scores.append(score / 300)
    assert found["ibs"] == pytest.approx(float(np.average(scores, weights=np.diff(EDGES))), rel=1e-9)


def test_without_censoring_the_brier_score_is_scikit_learns() -> None:
    logits, time, _ = _survival(200, 8)
    metrics = SurvivalMetrics("t", "e", (0.0, 8.0))
    found = metrics.summarise(metrics.sums(logits[:, :1], {"t": time, "e": time < 8}, np.ones(200)))
    falls = 1.0 / (1.0 + np.exp(-logits[:, 0]))
    assert found["ibs"] == pytest.approx(brier_score_loss(time < 8, falls))


def test_the_brier_score_ends_where_everybody_is_censored() -> None:
    """By hand: two alive at the first edge with S = 1/2, nobody seen at a later one."""
    targets = {"t": np.array([1.5, 1.5]), "e": np.array([0.0, 0.0])}
    metrics = SurvivalMetrics("t", "e", EDGES)
    assert metrics.summarise(metrics.sums(np.zeros((2, 4)), targets, np.ones(2)))["ibs"] == pytest.approx(0.25)
    targets = {"t": np.array([0.5, 0.5]), "e": np.array([0.0, 0.0])}
    assert "ibs" not in metrics.summarise(metrics.sums(np.zeros((2, 4)), targets, np.ones(2)))


EVERY = (
    BinaryMetrics(), ClassMetrics(3), TextMetrics(), RegressionMetrics(), MultiLabelMetrics(("a", "b")),
    SurvivalMetrics("a", "b", EDGES), NoMetrics(),
)  # fmt: skip
OUTPUTS = {BinaryMetrics: 1, ClassMetrics: 3, TextMetrics: 8, RegressionMetrics: 1, MultiLabelMetrics: 2}


def _record(metrics: Metric, output: float, value: float) -> Array:
    outputs = np.full((1, OUTPUTS.get(type(metrics), 4)), output)
    several = isinstance(metrics, (MultiLabelMetrics, SurvivalMetrics))
    targets = {name: np.array([value]) for name in "ab"} if several else np.array([int(value)])
    return metrics.sums(outputs, targets, np.array([abs(output)]))


@pytest.mark.parametrize("metrics", EVERY, ids=lambda metrics: type(metrics).__name__)
@pytest.mark.parametrize("output", [-1e3, 0.0, 1e3])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_one_record_moves_a_sum_by_a_bounded_amount_and_gives_its_names_only(
    metrics: Metric, output: float, value: float
) -> None:
    sums = _record(metrics, output, value)
    bound = 8e3 if isinstance(metrics, TextMetrics) else 1e3
    assert sums.shape == (metrics.size,)
    assert np.isfinite(sums).all() and np.abs(sums).max() <= bound
    found = metrics.summarise(sums, 2.0)
    assert set(found) <= set(metrics.names) and np.isfinite(list(found.values())).all()
    assert metrics.smaller <= set(metrics.names)


@pytest.mark.parametrize("metrics", EVERY, ids=lambda metrics: type(metrics).__name__)
def test_over_no_records_nothing_is_defined(metrics: Metric) -> None:
    assert metrics.summarise(np.zeros(metrics.size)) == {}
