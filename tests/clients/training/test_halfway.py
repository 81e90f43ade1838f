"""A trainer that dies in a round goes on at its step, to the bits of a round that nothing has disturbed."""

from __future__ import annotations

import dataclasses
import itertools
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.records import in_memory
from torch import Tensor, nn

from sovfed.clients.data import load_records, source_stamp
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


def test_a_disk_that_is_full_stops_no_round(tmp_path: Path) -> None:
    """The library that writes tensors has an error of its own for it."""
    path, (soft, hard) = tmp_path / "halfway.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = trainer(None).learn(request(), None).update
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        learned = trainer(path).learn(request(), None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(learned.update, expected)
    assert not any(tmp_path.iterdir())


def test_what_a_trainer_was_writing_as_it_was_killed_is_not_left(tmp_path: Path) -> None:
    """Half of a model that nothing ever removed: of each kill another, until the disk was full."""
    path = tmp_path / "halfway.safetensors"
    for name in (".halfway.safetensors.k3_x9ab7", ".tmp5yezEK"):
        (tmp_path / name).write_bytes(b"half of a model")
    (tmp_path / "isolation.json").touch()
    Halfway(path, 1e6)
    assert [left.name for left in tmp_path.iterdir()] == ["isolation.json"]


def test_a_round_begins_anew_where_the_records_are_others_by_now(tmp_path: Path) -> None:
    """A person opts out while the trainer is down, and another is there again: as many records as before."""
    path, opt_out = tmp_path / "halfway.safetensors", tmp_path / "opt-out.txt"
    opt_out.write_text("ann")
    config = DataConfig(path=str(tmp_path / "table.csv"), opt_out=str(opt_out))
    kept = Halfway(path, 0.0, lambda _task: source_stamp(config))
    others = dataclasses.replace(RECORDS, train=RECORDS.train[::-1].copy())
    expected = Learner(TASK, others, site="0", device="cpu").learn(request(), None).update
    for list_now in ("bob", "eve"):  # also while it still trains on what it had read before
        learner = trainer(None, 5)
        learner._halfway, learner._source = kept, kept.source(TASK)
        opt_out.write_text(list_now)
        with pytest.raises(Death):
            learner.learn(request(), None)
        again = Halfway(path, 1e6, kept.source)
        held = Learner(TASK, others, site="0", device="cpu", halfway=again, source=again.source(TASK))
        np.testing.assert_array_equal(held.learn(request(), None).update, expected)
        assert not path.exists()


def test_what_of_a_source_is_looked_at(tmp_path: Path) -> None:
    config = DataConfig(path=str(tmp_path), opt_out=str(tmp_path / "none.txt"))
    seen = {source_stamp(DataConfig()), source_stamp(config)}
    for name in ("a.csv", "none.txt"):
        (tmp_path / name).write_text("x")
        seen.add(source_stamp(config))
    (tmp_path / "a.csv").write_text("xy")
    assert source_stamp(config) not in seen and len(seen) == 4


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
