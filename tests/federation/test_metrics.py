"""Metrics from summed vectors against scikit-learn, which sees every score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from sovfed.federation.errors import ProtocolError
from sovfed.federation.metrics import BinaryMetrics, ClassMetrics, NoMetrics, auc, gain
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
