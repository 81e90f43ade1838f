"""The baselines: nothing held out is trained on, and the figures are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from sovfed.clients.data import load_records
from sovfed.federation.config import ClientConfig, Config, DataConfig, TaskConfig
from sovfed.federation.tasks.columns import NUMBERS
from sovfed.federation.tasks.registry import get_task
from sovfed.simulations.baselines import columns_of, compare_sites, exact, labels_of, merge, pooled, score

CONFIG = Config(client=ClientConfig(device="cpu"), task=TaskConfig(local_epochs=2, batch_size=32, learning_rate=0.1))
DATA = [DataConfig(site=str(site)) for site in range(4)]
TASK = get_task("breast_cancer")


def test_merging_keeps_every_part_on_its_side() -> None:
    datasets = [load_records(TASK, source) for source in DATA]
    union = merge(datasets)
    assert len(labels_of(TASK, union)) == 569
    assert len(np.unique(union.persons)) == 569
    for rows, side in ((union.train, "train"), (union.test, "test")):
        expected = np.concatenate([columns_of(dataset)[NUMBERS][getattr(dataset, side)] for dataset in datasets])
        assert np.array_equal(union.columns[NUMBERS][rows], expected)


def test_the_pooled_model_is_as_good_as_scikit_learns_logistic_regression() -> None:
    union = merge([load_records(TASK, source) for source in DATA])
    features, labels = union.columns[NUMBERS], labels_of(TASK, union)
    train, test = features[union.train], features[union.test]
    mean, std = train.mean(0), train.std(0)
    model = LogisticRegression(max_iter=1000).fit((train - mean) / std, labels[union.train])
    expected = roc_auc_score(labels[union.test], model.decision_function((test - mean) / std))
    assert score(TASK, pooled(CONFIG, union), union) == pytest.approx(expected, abs=0.01)


def test_a_comparison_has_a_row_for_each_institution_and_pooling_beats_being_alone() -> None:
    union = merge([load_records(TASK, source) for source in DATA])
    trained = pooled(CONFIG, union)
    comparison = compare_sites(CONFIG, DATA, trained.model, trained.scale)
    assert [row["test"] for row in comparison.rows] == [76, 51, 29, 14]
    assert sum(row["train"] for row in comparison.rows) == len(union.train)
    assert comparison.metric == "auc"
    assert comparison.federated == comparison.pooled > comparison.alone_mean
    assert all(row["federated"] == row["pooled"] for row in comparison.rows)


def test_a_metric_that_is_undefined_is_none() -> None:
    assert exact("auc", np.zeros((3, 1), dtype=np.float32), np.ones(3, dtype=np.int64)) is None
    logits = np.array([[2, 0, 0], [0, 2, 0], [2, 0, 0]], dtype=np.float32)
    assert exact("auc", logits, np.array([0, 1, 0])) == 1.0
    assert exact("accuracy", logits, np.array([0, 1, 1])) == pytest.approx(2 / 3)
