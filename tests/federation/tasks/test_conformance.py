"""What `sovfed task check` tries: a task that works holds throughout, and each defect is named."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.federation.tasks.declared_cases import TARGETS, text_of
from tests.server.agency import server_config
from torch import Tensor, nn

import sovfed
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.config import ClientConfig, DataConfig, TrackingConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import ProfileRequest, Refusal
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import registry
from sovfed.federation.tasks.conformance import conform, require_works
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.registry import get_task
from sovfed.server.cli.run import cli as run_commands
from sovfed.server.home import Settings


@pytest.mark.parametrize("target", TARGETS)
def test_a_declared_task_holds_throughout(target: str) -> None:
    checks = conform(task_from_text(text_of("mlp", target)))
    assert [check for check in checks if not check.held] == []
    assert [check.what for check in checks] == [
        "schema", "model", "size", "same model for the same seed", "outputs", "loss", "gradient", "metrics",
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


def _raising(outputs: Tensor, targets: Any) -> Tensor:
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("change", "what", "told"),
    [
        ({"loss": _mean}, "loss", "expected \\[8\\]"),
        ({"loss": _coupled}, "loss", "depends on the others"),
        ({"loss": _infinite}, "loss", "not finite"),
        ({"headline": "auk"}, "metrics", "'auk' one of them"),
        ({"metrics": _NotAdded()}, "metrics", "do not add up"),
        ({"build": _drawn}, "same model for the same seed", "torch's generator"),
        ({"build": lambda: nn.Linear(8, 1)}, "model", "^task .*does not take"),
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


BEFORE_ROUND_1 = [
    ({"build": lambda: nn.Linear(8, 1)}, r"the model does not take .*mat1 and mat2"),
    ({"loss": _mean}, r"cannot be trained: loss: has shape \[\], expected \[8\]"),
    ({"loss": _raising}, r"cannot be trained: loss: KeyError: 'mine'"),
    ({"headline": "auk"}, r"cannot be trained: metrics: .*'auk' one of them"),
]


@pytest.mark.parametrize(("change", "told"), BEFORE_ROUND_1)
def test_both_sides_refuse_before_round_1_what_cannot_be_trained_in_the_same_words(
    change: dict[str, Any], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`sovfed.simulate` by either engine, the agency's `run start`, and the institution's trainer."""
    task = dataclasses.replace(task_from_text(text_of()), name="defect", **change)
    registry.add(task)
    said = set()
    for engine in ("inprocess", "vectorised"):
        settings = {"simulation.engine": engine, "secagg": "none"}
        with pytest.raises(ConfigError, match=told) as raised:
            sovfed.simulate(task, {"a": None, "b": None}, rounds=1, settings=settings)
        said.add(str(raised.value))
    agency = server_config(tmp_path)
    (tmp_path / "server.json").write_text(json.dumps(dataclasses.asdict(Settings(agency, TrackingConfig()))))
    result = CliRunner().invoke(run_commands, ["start", "task.name=defect", "--home", str(tmp_path)])
    said.add(str(result.exception))
    trainer = make_trainer(ClientConfig(device="cpu", data=DataConfig(source="csv", path=str(tmp_path / "none"))))
    with pytest.raises(ConfigError) as raised:
        trainer.prepare("defect")
    said.add(str(raised.value))
    assert len(said) == 1, said
    if "build" in change:
        return  # there is no digest that a request could carry
    reply = trainer.answer(ProfileRequest(run="r", task="defect", digest=task.digest))
    assert isinstance(reply, Refusal) and reply.reason == "config"
    assert re.search(told, caplog.text)


def test_a_model_that_is_mended_in_a_notebook_is_the_one_that_is_tried_next() -> None:
    broken = dataclasses.replace(task_from_text(text_of()), name="mended", build=lambda: nn.Linear(8, 1))
    mended = dataclasses.replace(task_from_text(text_of()), name="mended")
    for task in (broken, mended, mended):
        registry.add(task)
    assert registry.versions("mended") == [mended]


def test_a_researcher_sees_what_the_own_code_raised() -> None:
    task = dataclasses.replace(task_from_text(text_of()), loss=_raising)
    with pytest.raises(ConfigError) as raised:
        require_works(task)
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize("loss", [_coupled, _infinite])
def test_what_is_only_unwise_may_be_trained(loss: Any) -> None:
    require_works(dataclasses.replace(task_from_text(text_of()), loss=loss))
