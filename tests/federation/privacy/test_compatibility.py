"""The check for models that couple records: the same made-up records on every path, and layers that begin at zero."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from tests.records import records_of
from torch import Tensor, nn

from sovfed.clients.dpsgd.examination import examine_task
from sovfed.clients.training.private import PrivateTraining
from sovfed.federation.errors import PrivacyError
from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.privacy.compatibility import examine
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Column, Schema, target
from sovfed.federation.tasks.losses import cross_entropy
from sovfed.federation.tasks.registry import GROUP, get_task
from sovfed.simulations.vectorised_private import StackedPrivate


class Coupled(nn.Module):
    """Every record's output depends on the others' codes, which are zeros in none but a lazy check."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.out, self.head = nn.Embedding(16, 8), nn.Linear(64, 40), nn.Linear(40, 3)

    def forward(self, codes: Tensor) -> Tensor:
        seen = self.code(codes.long()).flatten(1)
        out: Tensor = self.head(torch.relu(self.out(seen + 5.0 * seen.mean(0, keepdim=True).detach())))
        return out


class Sleeping(nn.Module):
    """Mixes the records by a layer that begins at zero: as it was built, nothing shows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.head(features + self.mix(features.mean(0, keepdim=True).expand(features.shape)))
        return out


def task_of(build: type[nn.Module], *, symbols: bool) -> Task:
    return Task(
        name="mine", title="t",
        schema=Schema(
            (Column("code", "tokens" if symbols else "number", low=0.0, high=15.0, shape=(8,), scaling="bounds"),
             target("y", "a", "b", "c"))
        ),
        metrics=ClassMetrics(3), headline="auc", build=build, loss=cross_entropy,
    )  # fmt: skip


@pytest.mark.parametrize("build", [Coupled, Sleeping])
@pytest.mark.parametrize("several", [False, True])
def test_a_model_that_couples_records_is_refused_on_every_path(build: type[nn.Module], several: bool) -> None:
    task = task_of(build, symbols=build is Coupled)
    assert any("depends on the others" in str(one) for one in examine_task(task, several_records=several))
    codes = np.random.default_rng(0).integers(0, 16, (20, 8))
    records = records_of(task.schema, codes, np.zeros(20), np.arange(19), np.array([19]), several_records=several)
    training = PrivateTraining(task, records, site="0", device="cpu", ledger=None)
    with pytest.raises(PrivacyError, match="depends on the others"):
        training._step(1.0)
    with pytest.raises(PrivacyError, match="depends on the others"):
        StackedPrivate(task, 1.0, torch.device("cpu"))


def test_the_trial_leaves_the_model_as_it_was() -> None:
    module = nn.Linear(8, 3)
    before = [one.clone() for one in module.parameters()]
    assert examine(module, cross_entropy, *task_of(Sleeping, symbols=False).made_up(5)) == []
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize(
    "name", [point.name for point in entry_points(group=GROUP) if get_task(point.name).build is not None]
)
def test_made_up_records_are_within_the_schema_and_reach_its_ends(name: str) -> None:
    task = get_task(name)
    (features, labels), (again, _) = task.made_up(300), task.made_up(300)
    assert isinstance(features, Tensor) and isinstance(again, Tensor) and isinstance(labels, Tensor)
    assert torch.equal(features, again)
    (goal,) = task.schema.targets
    if task.schema.classes:
        assert set(labels.tolist()) == set(range(len(task.schema.classes)))
    else:
        assert goal.low <= float(labels.min()) < float(labels.max()) <= goal.high
    (first, *_) = task.schema.inputs
    if first.kind == "tokens":
        assert features.dtype == torch.int32
        assert (float(features.min()), float(features.max())) == (first.low, first.high)
        assert len(torch.unique(features)) == first.high - first.low + 1
    else:
        assert features.dtype == torch.float32
        assert (float(features.min()), float(features.max())) == (-1, 1)
        assert float(features[2:].std()) > 0.5


def test_records_that_differ_in_a_feature_differ_in_all_rows() -> None:
    """Not the one lazy row, repeated."""
    features, _ = task_of(Coupled, symbols=True).made_up(5)
    assert isinstance(features, Tensor)
    assert len(torch.unique(features, dim=0)) == 5
