"""A trainer that dies in a round goes on at its step, to the bits of a round that nothing has disturbed."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.records import in_memory
from torch import Tensor, nn

from sovfed.clients.data import load_records
from sovfed.clients.training.algorithms import Learner
from sovfed.clients.training.halfway import Halfway
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import TrainRequest
from sovfed.federation.tasks.registry import add, get_task

BASE = get_task("breast_cancer")
RECORDS = in_memory(load_records(BASE, DataConfig(site="0")))


class Net(nn.Module):
    """With all that a round carries from step to step: dropout's draws, running statistics, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class Death(BaseException):
    """Of the process; nothing catches it."""


TASK = add(dataclasses.replace(BASE, name="t_halfway", build=Net))
PLANS: dict[str, dict[str, Any]] = {
    "sgd": {}, "momentum": {"momentum": 0.9}, "adamw": {"optimizer": "adamw", "learning_rate": 0.01},
    "muon": {"optimizer": "muon", "momentum": 0.95, "nesterov": True, "learning_rate": 0.01, "rate_end": 0.2},
    "accumulated": {"optimizer": "adamw", "accumulation": 3, "learning_rate": 0.01},
    "scaffold": {"algorithm": "scaffold", "control": np.ones(0, np.float32)},
}  # fmt: skip


def request(**changes: Any) -> TrainRequest:
    model = TASK.layout.vector(TASK.model(0))
    if "control" in changes:
        changes["control"] = np.full(model.size, 1e-3, np.float32)
    return dataclasses.replace(
        TrainRequest(
            run="r", round=1, task=TASK.name, seed=1, local_epochs=3, batch_size=16, learning_rate=0.1,
            proximal_mu=0.0, model=model, scale=TASK.transform.public_scale,
        ),
        **changes,
    )  # fmt: skip


def trainer(path: Path | None, dies_after: int = 0) -> Learner:
    """One that keeps its state after every batch, and dies in the forward pass of the batch after so many."""
    learner = Learner(TASK, RECORDS, site="0", device="cpu", halfway=None if path is None else Halfway(path, 0.0))
    if dies_after:
        loss, calls = learner._loss, itertools.count()

        def deadly(outputs: Tensor, targets: Any) -> Tensor:
            if next(calls) >= dies_after:
                raise Death
            return loss(outputs, targets)

        learner._loss = deadly
    return learner


@pytest.mark.parametrize("plan", PLANS)
def test_the_update_is_that_of_a_round_that_nothing_disturbed(plan: str, tmp_path: Path) -> None:
    asked, path = request(**PLANS[plan]), tmp_path / "own" / "halfway.safetensors"
    expected = trainer(None).learn(asked, None)
    steps = expected.steps * (3 if plan == "accumulated" else 1)
    for dies_after in (4, steps // 2, steps - 1):
        with pytest.raises(Death):
            trainer(path, dies_after).learn(asked, None)
        assert path.stat().st_mode & 0o777 == 0o600
        if dies_after < steps - 1:  # and once more, a little later
            with pytest.raises(Death):
                trainer(path, 2).learn(asked, None)
        learned = trainer(path).learn(asked, None)
        np.testing.assert_array_equal(learned.update, expected.update)
        assert learned.loss == expected.loss
        assert not path.exists()


def test_steps_that_were_taken_are_not_taken_again(tmp_path: Path) -> None:
    asked, path = request(), tmp_path / "halfway.safetensors"
    with pytest.raises(Death):
        trainer(path, 10).learn(asked, None)
    with pytest.raises(Death):
        trainer(path, trainer(None).steps(asked) - 11).learn(asked, None)
    assert path.exists()


@pytest.mark.parametrize(
    "change", [{"round": 2}, {"seed": 2}, {"begin": np.ones(3, np.uint8)}, {"learning_rate": 0.2}, {"site": "1"}]
)
def test_another_round_begins_anew(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "halfway.safetensors"
    with pytest.raises(Death):
        trainer(path, 5).learn(request(), None)
    site = change.pop("site", "0")
    other = request(**change)
    expected = Learner(TASK, RECORDS, site=site, device="cpu").learn(other, None)
    found = Learner(TASK, RECORDS, site=site, device="cpu", halfway=Halfway(path, 1e6)).learn(other, None)
    np.testing.assert_array_equal(found.update, expected.update)
    assert not path.exists()


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:100], lambda data: data[:-9], lambda data: b"", lambda _: b"x" * 50]
)
def test_a_state_that_is_not_whole_is_done_without(spoil: Any, tmp_path: Path) -> None:
    path = tmp_path / "halfway.safetensors"
    with pytest.raises(Death):
        trainer(path, 5).learn(request(), None)
    path.write_bytes(spoil(path.read_bytes()))
    np.testing.assert_array_equal(
        trainer(path).learn(request(), None).update, trainer(None).learn(request(), None).update
    )


def test_a_disk_that_takes_nothing_stops_no_round(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "halfway.safetensors"
    np.testing.assert_array_equal(
        trainer(path).learn(request(), None).update, trainer(None).learn(request(), None).update
    )


def test_warming_up_forgets_nothing(tmp_path: Path) -> None:
    """It is the first thing that a trainer does once it is back."""
    path = tmp_path / "halfway.safetensors"
    with pytest.raises(Death):
        trainer(path, 5).learn(request(), None)
    back = trainer(path, trainer(None).steps(request()) - 6 + 2)
    back.warm_up()
    assert path.exists()


def test_half_precision_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "halfway.safetensors"
    try:
        training = LocalTraining(TASK, RECORDS, site="0", device="cpu", precision="fp16", halfway=Halfway(path, 0.0))
        training.train(request())
    except (ConfigError, RuntimeError) as error:
        pytest.skip(f"no fp16 here: {error}")
    assert not path.exists() and torch.get_num_threads()
