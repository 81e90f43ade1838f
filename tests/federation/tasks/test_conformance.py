"""What `sovfed task check` tries: a task that works holds throughout, and each defect is named."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from tests.federation.tasks.declared_cases import TARGETS, text_of
from torch import Tensor, nn

from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks.conformance import conform
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.registry import get_task


@pytest.mark.parametrize("target", TARGETS)
def test_a_declared_task_holds_throughout(target: str) -> None:
    checks = conform(task_from_text(text_of("mlp", target)))
    assert [check for check in checks if not check.held] == []
    assert [check.what for check in checks] == [
        "schema", "model", "same model for the same seed", "outputs", "loss", "gradient", "metrics",
    ]  # fmt: skip


def test_a_task_that_trains_nothing_holds() -> None:
    assert all(check.held for check in conform(get_task("echo")))


def _mean(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits[:, 0] - labels).square().mean()


def _coupled(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits[:, 0] - labels).square() - logits.mean()


def _infinite(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits[:, 0] - labels) / 0.0


class _NotAdded(BinaryMetrics):
    def sums(self, outputs: Any, targets: Any, losses: Any) -> Any:
        return super().sums(outputs, targets, losses) / len(losses)


def _drawn() -> nn.Module:
    module = nn.Linear(9, 1)
    nn.init.constant_(module.bias, np.random.default_rng().normal())
    return module


@pytest.mark.parametrize(
    ("change", "what", "told"),
    [
        ({"loss": _mean}, "loss", "expected \\[8\\]"),
        ({"loss": _coupled}, "loss", "depends on the others"),
        ({"loss": _infinite}, "loss", "not finite"),
        ({"headline": "auk"}, "metrics", "'auk' one of them"),
        ({"metrics": _NotAdded()}, "metrics", "do not add up"),
        ({"build": _drawn}, "same model for the same seed", "torch's generator"),
        ({"build": lambda: nn.Linear(8, 1)}, "model", "ConfigError: .*does not take"),
    ],
)
def test_a_defect_is_named(change: dict[str, Any], what: str, told: str) -> None:
    task: DeclaredTask = dataclasses.replace(task_from_text(text_of()), **change)
    found = [check for check in conform(task) if not check.held]
    assert [check.what for check in found] == [what]
    assert re.search(told, found[0].detail)


def test_checking_leaves_torchs_generator_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    conform(task_from_text(text_of()))
    assert torch.equal(before, torch.get_rng_state())
