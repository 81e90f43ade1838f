"""What the federation made is kept whole, told apart, never replaced by another run, and measured at home."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import accuracy_score, roc_auc_score
from tests.federation.models.made_tasks import BINARY, RUN, model_of

from sovfed.clients.cli.model import model, told
from sovfed.clients.data import Records, load_records
from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import Policy
from sovfed.clients.models.own_figures import Figures, own_figures, own_scale
from sovfed.clients.models.received import MAX_MODELS, ReceivedModels
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ConfigError, DataError, PolicyError
from sovfed.federation.messages import Sums, TrainRequest, Vector
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.models.facts import Facts, facts_of
from sovfed.federation.models.saved import load_model, save_model
from sovfed.federation.models.stored import MODEL
from sovfed.federation.tasks import Task, initial_vector, summarise
from sovfed.federation.tasks.losses import binary_cross_entropy
from sovfed.federation.tasks.registry import add, get_task

VECTOR, SCALE = model_of(BINARY)
PLAN = {"rounds": 3, "local_epochs": 40, "batch_size": 16, "learning_rate": 0.1, "seed": 5, "clip": 1.0}
SCORED = add(replace(BINARY, name="t_scored", metrics=BinaryMetrics(), loss=binary_cross_entropy))


def facts(run: str = "study-1", rounds: int = 3) -> Facts:
    return facts_of(BINARY, SCALE, replace(RUN, name=run, rounds=rounds))


@pytest.fixture
def models(tmp_path: Path) -> ReceivedModels:
    return ReceivedModels(tmp_path / "received")


def test_the_file_is_byte_for_byte_the_agencys(models: ReceivedModels, tmp_path: Path) -> None:
    agency = tmp_path / "agency"
    agency.mkdir()
    published = save_model(agency, BINARY, VECTOR, SCALE, RUN)
    kept = models.keep(BINARY, VECTOR, load_model(agency).facts, owner="7", published=published, plan=PLAN)
    assert kept.same and kept.plan == PLAN
    assert (kept.path / MODEL).read_bytes() == (agency / MODEL).read_bytes()
    other = models.keep(BINARY, VECTOR * 2, load_model(agency).facts, owner="8", published=published, plan={})
    assert not other.same


def test_it_is_found_by_another_process_and_for_the_owner_alone(models: ReceivedModels, tmp_path: Path) -> None:
    models.keep(BINARY, VECTOR, facts(), owner="7", plan=PLAN)
    found = ReceivedModels(tmp_path / "received").find("study-1")
    assert load_model(found.path, sha256=found.sha256).vector.tobytes() == VECTOR.tobytes()
    assert {path.stat().st_mode & 0o777 for path in found.path.iterdir()} == {0o600}
    assert found.path.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in (tmp_path / "received").iterdir()] == [found.path.name]  # no draft is left


def test_a_later_model_of_the_run_takes_the_place_and_no_other_runs_does(models: ReceivedModels) -> None:
    models.keep(BINARY, VECTOR, facts(rounds=1), owner="7", plan={})
    models.keep(BINARY, VECTOR * 2, facts(rounds=2), owner="7", plan={})
    models.keep(BINARY, VECTOR * 3, facts(rounds=2), owner="7", plan={})
    models.keep(BINARY, VECTOR, facts(rounds=9), owner="666", plan={})  # the same name, asked for by another
    assert [(each.owner, each.facts.run.rounds) for each in models.list()] == [("666", 9), ("7", 2)]
    with pytest.raises(DataError, match="Flower's runs 666, 7: choose one"):
        models.find("study-1")
    assert load_model(models.find("study-1", "7").path).vector[0] == VECTOR[0] * 3
    with pytest.raises(DataError, match="did you mean 'study-1'"):
        models.find("study-2")


def test_the_agency_fills_the_shelf_and_deletes_nothing(
    models: ReceivedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sovfed.clients.models.received.MAX_MODELS", 3)
    assert MAX_MODELS == 32
    for number in range(3):
        models.keep(BINARY, VECTOR, facts(f"run-{number}"), owner="7", plan={})
    with pytest.raises(PolicyError, match="client model remove RUN"):
        models.keep(BINARY, VECTOR, facts("one-more"), owner="7", plan={})
    models.keep(BINARY, VECTOR, facts("run-0"), owner="7", plan={})  # has its place
    assert models.remove("run-1") == 1
    with pytest.raises(PolicyError):
        models.check_room("one-more", BINARY.name, "7", 1 << 32)  # values
    models.keep(BINARY, VECTOR, facts("one-more"), owner="7", plan={})


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "x" * 200])
def test_a_name_is_never_a_path(models: ReceivedModels, tmp_path: Path, name: str) -> None:
    models.keep(BINARY, VECTOR, facts(name), owner="../7", plan={})
    assert [path.name for path in tmp_path.iterdir()] == ["received"]
    assert models.find(name).run == name


@pytest.mark.parametrize("content", [b"", b"[]", b'{"sha256": 1}', b"\xff"])
def test_a_damaged_folder_is_named(models: ReceivedModels, content: bytes) -> None:
    kept = models.keep(BINARY, VECTOR, facts(), owner="7", plan={})
    (kept.path / "received.json").write_bytes(content)
    with pytest.raises(DataError, match=kept.path.name):
        models.list()


def test_a_model_that_is_not_finite_is_not_kept(models: ReceivedModels, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="finite"):
        models.keep(BINARY, VECTOR * np.float32(np.inf), facts(), owner="7", plan={})
    assert list((tmp_path / "received").iterdir()) == []


def test_what_a_killed_process_left_goes(models: ReceivedModels, tmp_path: Path) -> None:
    models.keep(BINARY, VECTOR, facts(), owner="7", plan={})
    left = tmp_path / "received" / ".draft-left"
    left.mkdir()
    (left / MODEL).write_bytes(b"half")
    kept = models.keep(BINARY, VECTOR, facts(), owner="7", plan={})
    assert list((tmp_path / "received").iterdir()) == [kept.path]


def test_the_command_lists_gets_and_removes(models: ReceivedModels, tmp_path: Path) -> None:
    home = ["--home", str(tmp_path)]
    assert "Nothing yet" in CliRunner().invoke(model, ["list", *home]).output
    models.keep(BINARY, VECTOR, facts(), owner="7", published="0" * 64, plan={})
    shown = CliRunner().invoke(model, ["list", *home], env={"COLUMNS": "200"}, catch_exceptions=False).output
    assert "distributed, ε = 1.25" in shown and "as published" in shown and "Flower's number" not in shown
    models.keep(BINARY, VECTOR, facts(), owner="8", plan={})
    both = CliRunner().invoke(model, ["list", *home], catch_exceptions=False).output
    assert all(word in both for word in ("Flower's number", "7", "8", "no", "not told"))
    assert max(map(len, both.splitlines())) <= 80
    CliRunner().invoke(model, ["remove", "study-1", *home])
    models.keep(BINARY, VECTOR, facts(), owner="7", published="0" * 64, plan={})
    (said,) = json.loads(CliRunner().invoke(model, ["list", "--json", *home]).output)
    assert (said["run"], said["flower_run"], said["as_published"]) == ("study-1", "7", False)
    out = tmp_path / "ours"
    CliRunner().invoke(model, ["get", "study-1", str(out), *home], catch_exceptions=False)
    assert load_model(out).vector.tobytes() == VECTOR.tobytes()
    again = CliRunner().invoke(model, ["get", "study-1", str(out), *home])
    assert isinstance(again.exception, ConfigError) and "holds a model already" in str(again.exception)
    assert CliRunner().invoke(model, ["remove", "study-1", *home]).output.startswith("deleted")
    gone = CliRunner().invoke(model, ["remove", "study-1", *home])
    assert isinstance(gone.exception, DataError)


class PlainTraining:
    """Gradient descent as a book has it, on all records at once."""

    def __init__(self, task: Task, records: Records) -> None:
        self.task, self.records, self.asked = task, records, list[TrainRequest]()

    def outputs(
        self, vector: Vector, scale: Sums, rows: np.ndarray
    ) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
        module = self.task.model()
        torch.nn.utils.vector_to_parameters(torch.from_numpy(vector), module.parameters())
        table = {name: torch.from_numpy(part) for name, part in self.records.take(rows).items()}
        bound = self.task.transform.bound(scale)
        return module, module(bound.inputs(table)), bound.targets(table)  # type: ignore[return-value]

    def evaluate(self, model: Vector, scale: Sums) -> Sums:
        _, outputs, targets = self.outputs(model, scale, self.records.test)
        losses = binary_cross_entropy(outputs, targets)
        return self.task.metrics.sums(outputs.detach().numpy(), targets.numpy(), losses.detach().numpy())

    def train(self, request: TrainRequest) -> tuple[Vector, float]:
        self.asked.append(request)
        vector = request.model
        for _ in range(request.local_epochs):
            module, outputs, targets = self.outputs(vector, request.scale, self.records.train)
            loss = binary_cross_entropy(outputs, targets).mean()
            gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(module.parameters()))])
            vector = vector - (request.learning_rate * gradient).numpy()
        return vector - request.model, loss.item()


def records_of(task: Task, count: int = 200) -> Records:
    """Ill is who is old."""
    table = dict(task.schema.made_up(count))
    table["outcome"] = (table[".numbers"][:, 0] > 50).astype(np.int64)
    rows = np.arange(count)
    return Records(table, rows, rows[: count // 2], rows[count // 2 :])


def test_figures_at_home_are_scikit_learns_and_alone_has_the_same_plan(tmp_path: Path) -> None:
    records = records_of(SCORED)
    training = PlainTraining(SCORED, records)
    save_model(tmp_path, SCORED, VECTOR, SCALE, replace(RUN, privacy=None))
    loaded, rounds = load_model(tmp_path), list[tuple[int, int]]()
    figures = own_figures(loaded, records, training, PLAN, lambda *at: rounds.append(at))
    truth = records.columns["outcome"][records.test]
    held_out = records.take(records.test)
    chances = loaded.predict(held_out)["probability_ill"]
    assert figures.federated["auc"] == pytest.approx(roc_auc_score(truth, chances), abs=0.01)
    assert figures.federated["accuracy"] == pytest.approx(accuracy_score(truth, chances > 0.5))
    assert (figures.train, figures.test, figures.headline) == (100, 100, "auc")
    assert rounds == [(1, 3), (2, 3), (3, 3)]
    assert {(each.local_epochs, each.batch_size, each.learning_rate, each.seed) for each in training.asked} == {
        (40, 16, 0.1, 5)
    }
    assert figures.alone is not None and figures.alone["auc"] > 0.8
    np.testing.assert_array_equal(training.asked[0].scale, own_scale(SCORED, records))


def test_the_own_scale_is_numpys() -> None:
    records = records_of(SCORED)
    ages = records.columns[".numbers"][records.train, 0].astype(np.float64) / 50 - 1
    scale = own_scale(SCORED, records)
    assert (scale[0], scale[4]) == (pytest.approx(ages.mean(), rel=1e-6), pytest.approx(ages.std(), rel=1e-6))


def test_a_private_runs_model_is_compared_by_the_public_scale(tmp_path: Path) -> None:
    records = records_of(SCORED)
    training = PlainTraining(SCORED, records)
    save_model(tmp_path, SCORED, VECTOR, SCALE, RUN)
    figures = own_figures(load_model(tmp_path), records, training, {"rounds": 1})
    assert figures.alone is not None
    np.testing.assert_array_equal(training.asked[0].scale, SCORED.transform.public_scale)
    assert own_figures(load_model(tmp_path), records, training, None).alone is None


def test_figures_are_told_with_what_is_better() -> None:
    lines = told(Figures(30, 12, "auc", {"loss": 0.5, "auc": 0.75}, {"loss": 0.6}))
    assert lines[0] == "12 own held-out records; 30 to train on" and "chance" in lines[1]
    assert lines[2].split() == ["auc", "federated", "0.7500", "alone", "–", "(higher", "is", "better)"]
    assert lines[3].split() == ["loss", "federated", "0.5000", "alone", "0.6000", "(lower", "is", "better)"]


def test_the_command_measures_with_the_homes_own_records_and_the_runs_own_plan(tmp_path: Path) -> None:
    task = get_task("breast_cancer")
    home = tmp_path / "home"
    data = DataConfig(source="breast_cancer", site="2")
    create(home, ClientConfig(device="cpu", data=data), Policy(allowed_tasks=(task.name,)))
    records = load_records(task, data)
    scale = own_scale(task, records)
    ours = ReceivedModels(home / "received")
    run = replace(RUN, privacy=None, rounds=4)
    ours.keep(task, initial_vector(task, 0), facts_of(task, scale, run), owner="7", plan={**PLAN, "local_epochs": 2})

    def evaluated(*options: str) -> dict[str, Any]:
        asked = ["evaluate", "study-1", "--json", "--home", str(home), *options]
        said: dict[str, Any] = json.loads(CliRunner().invoke(model, asked, catch_exceptions=False).stdout)
        return said

    figures = evaluated()
    training = LocalTraining(task, records, site="2", device="cpu")
    expected = summarise(task, training.evaluate(initial_vector(task, 0), scale), scale)
    assert figures["federated"] == pytest.approx(expected)
    assert (figures["train"], figures["test"]) == (len(records.train), len(records.test))
    assert figures["alone"]["loss"] < figures["federated"]["loss"] and "loss" in figures["smaller"]
    assert evaluated("--rounds", "1")["alone"]["loss"] > figures["alone"]["loss"]
    assert evaluated("--no-alone")["alone"] is None
