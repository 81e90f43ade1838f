"""Tasks in one line."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sovfed
import sovfed.task
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


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 2)

    def forward(self, labs: Tensor, codes: Tensor) -> Tensor:
        out: Tensor = self.out(torch.cat([labs, codes], 1))
        return out


class AsOne(ByName):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["labs"], batch["codes"])


@pytest.mark.parametrize("build", [ByName, AsOne])
def test_shapes_by_name_reach_the_model_by_name_or_as_one_dict(build: type[nn.Module]) -> None:
    task = classifier("visits", build, {"labs": (2,), "codes": (3,)}, classes=2)
    assert [(column.name, column.shape) for column in task.schema.inputs] == [("labs", (2,)), ("codes", (3,))]
    module, (inputs, _) = task.model(), task.made_up(4)
    assert task.parameters == 12 and module(inputs).shape == (4, 2)


@pytest.mark.parametrize("inputs", [{}, {"labs": 5}, {"labs": ("a",)}, ["labs"], 5, (), "labs"])
def test_inputs_that_are_none_are_refused_with_what_is_expected(inputs: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a shape such as .*shapes by name.*or columns such as"):
        classifier("odd", ByName, inputs, classes=2)


def test_a_column_of_an_unknown_kind_is_told_the_kinds() -> None:
    with pytest.raises(ValueError, match=r"kind is 'array', expected number, boolean, .*a number with a shape"):
        Column(name="labs", kind="array", shape=(3,))
    with pytest.raises(ValueError, match="scaling is 'minmax', expected standard, log, bounds, none"):
        Column(name="labs", scaling="minmax")


def test_the_documented_model_with_two_inputs_trains() -> None:
    text = (Path(__file__).parents[3] / "docs" / "conversions.md").read_text()
    block = text[text.index("    class Net(") : text.index("An image or a text beside")]
    torch.manual_seed(0)
    names: dict[str, Any] = {"torch": torch, "sovfed": sovfed}
    exec(textwrap.dedent(block), names)  # noqa: S102  (our own page)
    assert names["result"].metrics["accuracy"] > 0.7


def test_what_is_not_said_is_said_of_the_task() -> None:
    task = classifier("named", lambda: nn.Linear(3, 2), (3,), 2, title="A title", headline="auc", version="7")
    assert (task.title, task.headline, task.version) == ("A title", "auc", "7")
    assert classifier("usual", lambda: nn.Linear(3, 2), (3,), 2).headline == "accuracy"
