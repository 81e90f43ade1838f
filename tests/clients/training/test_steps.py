"""Steps on gradients that lie in memory of somebody else's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sovfed.clients.training.model import FlatModel
from sovfed.clients.training.steps import make_stepper
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.plan import LocalPlan
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Column, Schema, number
from sovfed.federation.tasks.losses import binary_cross_entropy


class Constant(nn.Module):
    """A model of one tensor, which is also what it gives for each of three records."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(3))

    def forward(self, rows: Tensor) -> Tensor:
        return self.value.expand(len(rows), 3)


@pytest.mark.parametrize("plan", [LocalPlan(optimizer="adamw"), LocalPlan(momentum=0.5, weight_decay=0.1)])
def test_a_gradient_that_is_the_records_own_shares_leaves_them_as_they_are(plan: LocalPlan) -> None:
    schema = Schema((number("a", 0, 1), Column("ill", "boolean", role="target")))
    task = Task(
        name="constant", title="t", schema=schema, metrics=BinaryMetrics(), headline="auc", build=Constant,
        loss=binary_cross_entropy,
    )  # fmt: skip
    model = FlatModel(task, torch.device("cpu"))
    stepper = make_stepper(model, plan, 2, lambda: torch.ones(3), scaled=False)
    for _ in range(2):
        assert stepper((model.parameters[0] * 1.0,), 3) and stepper((model.parameters[0].view(3),), 3)
    assert model.shares(3).tolist() == [pytest.approx(1 / 3)] * 3
