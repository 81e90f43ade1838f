"""Tasks in one line."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sovfed.federation.metrics import BinaryMetrics, ClassMetrics
from sovfed.federation.tasks.columns import Column, number
from sovfed.federation.tasks.simple import classifier, multilabel, regressor
from sovfed.federation.tasks.trees import leaves


def test_numbers_of_a_shape_reach_the_model_as_they_are() -> None:
    task = classifier("shape", nn.Flatten, (2, 3), classes=6)
    bound = task.transform.bound(task.transform.public_scale)
    values = torch.tensor([[[1.5, -2.0, 0.0], [9.0, -9.0, 0.25]]])
    (inputs,) = leaves(bound.inputs({"features": values}))
    assert torch.equal(inputs, values)


def test_pixels_of_an_image_come_as_minus_one_to_one() -> None:
    task = classifier("scan", nn.Flatten, Column("scan", "image", shape=(1, 1, 3)), classes=3)
    bound = task.transform.bound(task.transform.public_scale)
    pixels = torch.tensor([[[[0, 255, 51]]]], dtype=torch.uint8)
    assert bound.inputs({"scan": pixels}).flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])  # type: ignore[union-attr]


def test_classes_are_words_or_a_count() -> None:
    assert classifier("two", lambda: nn.Linear(3, 2), (3,), ["no", "yes"]).schema.classes == ("no", "yes")
    assert classifier("three", lambda: nn.Linear(3, 3), (3,), 3).schema.classes == ("0", "1", "2")
    assert classifier("three", lambda: nn.Linear(3, 3), (3,), 3).metrics == ClassMetrics(3)


def test_one_logit_is_for_two_classes() -> None:
    task = classifier("one", lambda: nn.Linear(3, 1), (3,), 2, logits=1)
    assert task.metrics == BinaryMetrics()
    assert task.loss is not None
    assert task.loss(torch.zeros(1, 1), torch.tensor([1])).tolist() == pytest.approx([0.693147])  # log 2
    with pytest.raises(ValueError, match="one logit is for 2 classes"):
        classifier("one", lambda: nn.Linear(3, 1), (3,), 3, logits=1)


def test_columns_of_a_table_are_standardised_and_side_by_side() -> None:
    task = regressor("stay", lambda: nn.Linear(2, 1), [number("age", 0, 120), number("bmi", 5, 100)], low=0, high=365)
    assert task.parameters == 3
    assert task.transform.size == 3  # two inputs and the number learnt


def test_several_labels_have_a_logit_each() -> None:
    task = multilabel("signs", lambda: nn.Linear(4, 2), (4,), ["cough", "fever"])
    assert task.loss is not None
    loss = task.loss(torch.zeros(1, 2), {"cough": torch.tensor([1.0]), "fever": torch.tensor([0.0])})
    assert loss.tolist() == pytest.approx([0.693147])


def test_what_is_not_said_is_said_of_the_task() -> None:
    task = classifier("named", lambda: nn.Linear(3, 2), (3,), 2, title="A title", headline="auc", version="7")
    assert (task.title, task.headline, task.version) == ("A title", "auc", "7")
    assert classifier("usual", lambda: nn.Linear(3, 2), (3,), 2).headline == "accuracy"
