"""The check for models that couple records: the same made-up records on every path, and layers that begin at zero."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sovfed.clients.data import Records
from sovfed.clients.dpsgd.compatibility import examine, examine_task
from sovfed.clients.dpsgd.made_up import made_up_records
from sovfed.clients.private import PrivateTraining
from sovfed.federation.errors import PrivacyError
from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.tasks import NAMES, Feature, Schema, Task, get_task
from sovfed.federation.tasks.losses import cross_entropy
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
        name="mine", title="t", parameters=sum(one.numel() for one in build().parameters()),
        schema=Schema(tuple(Feature(f"c{place}", 0, 15) for place in range(8)), "y", ("a", "b", "c")),
        metrics=ClassMetrics(3), headline="auc", simulated_split=True, licence="", citation="", build=build,
        loss=cross_entropy, standardised=False, symbols=symbols,
    )  # fmt: skip


@pytest.mark.parametrize("build", [Coupled, Sleeping])
@pytest.mark.parametrize("several", [False, True])
def test_a_model_that_couples_records_is_refused_on_every_path(build: type[nn.Module], several: bool) -> None:
    task = task_of(build, symbols=build is Coupled)
    assert any("depends on the others" in str(one) for one in examine_task(task, several_records=several))
    codes = np.random.default_rng(0).integers(0, 16, (20, 8)).astype(np.float32)
    records = Records(codes, np.zeros(20, np.int64), np.arange(20), np.arange(19), np.array([19]), several)
    training = PrivateTraining(task, records, site="0", device="cpu", ledger=None)
    with pytest.raises(PrivacyError, match="depends on the others"):
        training._step(1.0)
    with pytest.raises(PrivacyError, match="depends on the others"):
        StackedPrivate(task, 1.0, torch.device("cpu"))


def test_the_trial_leaves_the_model_as_it_was() -> None:
    module = nn.Linear(8, 3)
    before = [one.clone() for one in module.parameters()]
    assert examine(module, cross_entropy, *made_up_records(task_of(Coupled, symbols=False), 5)) == []
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if get_task(name).build is not None])
def test_made_up_records_are_within_the_schema_and_reach_its_ends(name: str) -> None:
    task = get_task(name)
    features, labels = made_up_records(task, 300)
    again, _ = made_up_records(task, 300)
    assert torch.equal(features, again)
    assert features.dtype == torch.float32
    assert set(labels.tolist()) == set(range(len(task.schema.classes)))
    if task.symbols:
        low, high = task.schema.features[0].low, task.schema.features[0].high
        assert torch.equal(features, features.round())
        assert (float(features.min()), float(features.max())) == (low, high)
        assert len(torch.unique(features)) == high - low + 1
    else:
        assert (float(features.min()), float(features.max())) == (-1, 1)
        assert float(features[2:].std()) > 0.5


def test_records_that_differ_in_a_feature_differ_in_all_rows() -> None:
    """Not the one lazy row, repeated."""
    task = dataclasses.replace(task_of(Coupled, symbols=True))
    features, _ = made_up_records(task, 5)
    assert len(torch.unique(features, dim=0)) == 5
