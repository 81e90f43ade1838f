"""Gradients without torch's checks are torch's gradients."""

from __future__ import annotations

import pytest
import torch

from sovfed.clients.model import FlatModel, gradients
from sovfed.federation.tasks.registry import get_task


@pytest.mark.parametrize("task", ["breast_cancer", "digits", "digits_cnn", "synthetic_text"])
def test_gradients_are_those_of_torch(task: str) -> None:
    found = get_task(task)
    assert found.loss is not None
    model = FlatModel(found, torch.device("cpu"))
    torch.manual_seed(1)
    rows, _ = found.made_up(6)
    weights = torch.rand(6)

    def losses() -> torch.Tensor:
        assert found.loss is not None
        return found.loss(model.module(rows), torch.zeros(6, dtype=torch.long))

    unused = torch.nn.Parameter(torch.ones(2))
    parameters = (*model.parameters, unused)
    ours = gradients(losses(), weights, parameters)
    torchs: list[torch.Tensor | None] = list(torch.autograd.grad(losses(), parameters, weights, allow_unused=True))
    assert ours[-1] is None and torchs[-1] is None
    for mine, other in zip(ours[:-1], torchs[:-1], strict=True):
        assert mine is not None and other is not None and torch.equal(mine, other)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in ours)
    assert all(parameter.grad is None for parameter in parameters)
