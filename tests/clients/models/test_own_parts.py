"""Heads that stay at each institution: trained there, kept in its home, zeros on the wire, used by its own commands."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.federation.tasks.declared_cases import text_of
from torch import nn

import sovfed
from sovfed.clients.cli.model import model as cli
from sovfed.clients.models.own_parts import with_own_parts
from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.service import TrainerService
from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.personal import PersonalStates, read
from sovfed.federation.algorithms import ALGORITHMS
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.messages import EvaluateRequest, Refusal, TrainReply, TrainRequest
from sovfed.federation.models.facts import RunFacts, facts_of
from sovfed.federation.models.saved import load_model
from sovfed.federation.tasks import Task, initial_vector, registry, summarise
from sovfed.federation.tasks.declared import task_from_text
from sovfed.task import Records, classifier, records


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).tanh())


TASK = classifier("own-heads", Net, (4,), classes=3, personal=lambda name: name.startswith("head."))
HEAD = ALGORITHMS["fedper"].own(TASK.layout)


def site(number: int, task: Task = TASK, count: int = 90) -> Records:
    """Each institution calls the classes by other numbers, which one head cannot learn."""
    drawn = np.random.default_rng(number)
    values = drawn.normal(size=(count, 4)).clip(-9, 9).astype(np.float32)
    return records(task, (values, (values[:, :3].argmax(1) + number) % 3), persons=np.arange(count))


def sites() -> dict[str, Records]:
    return {f"site-{number}": site(number) for number in range(3)}


SETTINGS = {"task.learning_rate": 0.5, "task.local_epochs": 3}


@pytest.mark.parametrize("secagg", ["full", "none"])
def test_own_heads_learn_what_one_head_cannot(secagg: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "strategy": "fedper", "secagg": secagg}
    own = sovfed.simulate(TASK, sites(), rounds=12, settings=settings, folder=tmp_path / "own")
    shared = dataclasses.replace(TASK, name="one-head", personal=None)
    one = sovfed.simulate(shared, sites(), rounds=12, settings={**SETTINGS, "secagg": secagg})
    assert own.metrics["accuracy"] > 0.8 > one.metrics["accuracy"] + 0.2
    np.testing.assert_array_equal(own.vector[HEAD], initial_vector(TASK, own.config.seed)[HEAD])
    assert len(list((tmp_path / "own" / "institutions").rglob("*.personal.safetensors"))) >= 3


def trained(trainer: TrainerService, **changes: Any) -> Any:
    request = TrainRequest(
        run="7", round=1, task=TASK.name, seed=1, local_epochs=2, batch_size=16, learning_rate=0.5, proximal_mu=0.0,
        model=initial_vector(TASK, 0), scale=TASK.transform.public_scale, digest=TASK.digest, algorithm="fedper",
        keep="a-run",
    )  # fmt: skip
    return trainer.answer(dataclasses.replace(request, **changes))


def trainer_in(home: Path) -> TrainerService:
    registry.add(TASK)
    return TrainerService(
        RecordSource(lambda _task: site(1), "a"), Runtime("cpu"), states=PersonalStates(home / "personal")
    )


def test_a_trainer_sends_zeros_for_the_head_and_keeps_it(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path)
    reply = trained(trainer)
    assert isinstance(reply, TrainReply)
    assert not reply.update[HEAD].any() and reply.update[~HEAD].any()
    moved = ALGORITHMS["fedper"].own(dataclasses.replace(TASK, name="own-heads").layout)
    assert np.array_equal(moved, HEAD)
    (kept,) = PersonalStates(tmp_path / "personal").list()
    assert (kept.run, kept.algorithm) == ("a-run", "fedper")
    restarted = trainer_in(tmp_path)
    evaluated = restarted.answer(
        EvaluateRequest(
            run="7", round=1, task=TASK.name, model=initial_vector(TASK, 0), scale=TASK.transform.public_scale,
            digest=TASK.digest, algorithm="fedper", keep="a-run",
        )
    )  # fmt: skip
    assert not isinstance(evaluated, Refusal)


@pytest.mark.parametrize("algorithm", ["sgd", "fednova", "scaffold", "ditto"])
def test_no_other_algorithm_makes_a_head_travel(tmp_path: Path, algorithm: str) -> None:
    """A malicious agency asks for plain training of the very same task."""
    more = {"control": np.zeros(TASK.parameters, np.float32)} if algorithm == "scaffold" else {}
    reply = trained(trainer_in(tmp_path), algorithm=algorithm, **more)
    assert isinstance(reply, Refusal) and reply.reason == "config"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "keeps head.bias, head.weight at each institution"),
        ({"strategy": "fedadam"}, "take strategy=fedper"),
        ({"strategy": "fedper", "privacy": "distributed", "privacy.population": 200}, "no privacy mechanism"),
        ({"privacy": "distributed", "privacy.population": 200, "privacy.delta": 1e-4}, "no privacy accounts for"),
        ({"strategy": "fedper", "secagg": "none", "simulation.engine": "vectorised"}, "only plain SGD is stacked"),
        ({"strategy": "fedper", "secagg": "none", "simulation.engine": "ray"}, "keeps something there"),
    ],
)
def test_what_cannot_keep_a_head_at_home_is_refused_with_the_reason(settings: dict[str, Any], told: str) -> None:
    data = {f"site-{number}": site(number) for number in range(5)}
    with pytest.raises(ConfigError, match=told):
        sovfed.simulate(TASK, data, rounds=1, settings=settings)


@pytest.mark.parametrize(
    ("personal", "told"), [(lambda _name: True, "names every parameter"), (lambda _name: False, "names none of")]
)
def test_a_task_that_keeps_all_or_nothing_is_refused(personal: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        _ = dataclasses.replace(TASK, personal=personal).layout


def with_head(family: str) -> str:
    return text_of(family).replace(f"family: {family}", f"family: {family}, personal: head")


def test_a_task_yaml_keeps_its_head_by_one_word_and_others_have_the_digest_that_they_had() -> None:
    plain, own = task_from_text(text_of("mlp")), task_from_text(with_head("mlp"))
    assert not plain.layout.personal and len(own.layout.personal) == 2 and plain.digest != own.digest
    assert "personal" not in plain.text and task_from_text(own.text).digest == own.digest
    with pytest.raises(ConfigError, match="one layer"):
        task_from_text(with_head("linear"))


def test_the_institutions_commands_use_its_own_head(tmp_path: Path) -> None:
    trainer, model, state = trainer_in(tmp_path), initial_vector(TASK, 0), PersonalStates(tmp_path / "personal")
    for number in range(1, 9):
        model = model + trained(trainer, model=model, round=number).update
    run = RunFacts("a-run", 8, "fedper", "2026-11-29", ("a",))
    scale = TASK.transform.public_scale
    models = ReceivedModels(tmp_path / "received")
    received = models.keep(TASK, model, facts_of(TASK, scale, run), owner="7", plan={})
    loaded = load_model(received.path)
    own, told = with_own_parts(tmp_path, received, loaded)
    kept, _ = read(state.list()[0].path)
    np.testing.assert_array_equal(own.vector, np.where(HEAD, kept, model))
    assert "strategy=fedper" in told and "after round 8" in told
    training = LocalTraining(TASK, site(1), site="a", device="cpu")
    without, with_ = (
        summarise(TASK, training.evaluate(vector, scale), scale)["accuracy"] for vector in (model, own.vector)
    )
    assert with_ > 0.8 and with_ != without
    result = CliRunner().invoke(cli, ["get", "a-run", str(tmp_path / "out"), "--home", str(tmp_path)])
    assert result.exit_code == 0 and "this institution's alone" in result.output, (result.output, result.exception)
    np.testing.assert_array_equal(load_model(tmp_path / "out").vector, own.vector)
    other = models.keep(TASK, model, facts_of(TASK, scale, dataclasses.replace(run, name="b")), owner="8", plan={})
    with pytest.raises(DataError, match="took no part"):
        with_own_parts(tmp_path, other, load_model(other.path))
