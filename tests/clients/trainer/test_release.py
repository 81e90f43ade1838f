"""A run's model as the trainer takes it: what is refused, what is kept, and that nothing else is touched."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.clients.trainer.test_service import SCALE, TASK, train_request

from sovfed.clients.data import Dataset, load_records
from sovfed.clients.home.policy import Policy
from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.statistics.received import tables_in
from sovfed.clients.trainer.allowance import Allowance
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import TrainerService
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ProtocolError
from sovfed.federation.messages import Refusal, ReleaseReply, ReleaseRequest, Request, local_work
from sovfed.federation.models.facts import MAX_TOLD_BYTES, Privacy, RunFacts, Told, facts_of, from_told, told
from sovfed.federation.models.saved import load_model, save_model
from sovfed.federation.statistics.question import read_question
from sovfed.federation.tasks import Task, initial_vector

RUN = RunFacts(
    name="study-1", rounds=3, strategy="fedavg", date="2026-11-29", institutions=("north", "south"),
    metrics={"auc": 0.75}, privacy=Privacy("distributed", 1.25, 1e-5),
)  # fmt: skip
VECTOR = initial_vector(TASK, 1)
FACTS = told(facts_of(TASK, SCALE, RUN))


def as_bytes(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def release(**changes: object) -> ReleaseRequest:
    request = ReleaseRequest("7", 3, TASK.name, VECTOR, SCALE, as_bytes(FACTS), "0" * 64, digest=TASK.digest)
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def no_records(task: Task) -> Dataset:
    raise AssertionError("records were read")


def service(
    models: ReceivedModels | None,
    load: Callable[[Task], Dataset] = no_records,
    allowance: Allowance | None = None,
    check: Callable[[Request], None] = lambda _request: None,
) -> TrainerService:
    def no_ledger() -> None:
        raise AssertionError("the ledger was opened")

    opened = no_ledger if load is no_records else lambda: None
    books = Books(opened, allowance, received=models)
    return TrainerService(RecordSource(load, "3"), Runtime("cpu"), Rules(check), books)


@pytest.fixture
def models(tmp_path: Path) -> ReceivedModels:
    return ReceivedModels(tmp_path / "received")


def test_the_agencys_file_is_kept_to_the_byte_without_a_record_ledger_or_allowance(
    models: ReceivedModels, tmp_path: Path
) -> None:
    agency = tmp_path / "agency"
    agency.mkdir()
    published = save_model(agency, TASK, VECTOR, SCALE, RUN)
    policy = Policy(allowed_tasks=(TASK.name,))  # which requires privacy and secure aggregation
    trainer = service(models, allowance=Allowance(tmp_path, policy), check=policy.check)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert trainer.answer(release(sha256=published)) == ReleaseReply()
    kept = models.find("study-1")
    assert kept.same and (kept.owner, kept.plan, kept.facts.run) == ("7", {}, RUN)
    assert load_model(kept.path).vector.tobytes() == VECTOR.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "received"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "hart"}, "wrong-task"),
        ({"digest": "0" * 64}, "wrong-task"),
        ({"model": VECTOR[1:]}, "protocol"),
        ({"scale": SCALE[2:]}, "protocol"),
        ({"scale": SCALE * 0}, "policy"),
        ({"facts": as_bytes(b"{}")}, "protocol"),
    ],
)
def test_what_is_not_this_tasks_is_refused_and_counts_as_no_failure(
    changes: dict[str, object], reason: str, models: ReceivedModels, tmp_path: Path
) -> None:
    allowance = Allowance(tmp_path, Policy(allowed_tasks=(TASK.name,), max_failures_per_run=1))
    trainer = service(models, allowance=allowance)
    assert trainer.answer(release(**changes)) == trainer.answer(release(**changes)) == Refusal(reason)
    assert models.list() == []
    assert trainer.answer(release()) == ReleaseReply()


def test_the_policy_is_asked_first(models: ReceivedModels) -> None:
    trainer = service(models, check=Policy(allowed_tasks=("heart",)).check)
    assert trainer.answer(release()) == Refusal("bound")
    assert models.list() == []


def table(name: str = RUN.name, count: float = 300.0) -> ReleaseRequest:
    question = TASK.schema.columns[-1].name
    model = np.full(read_question(question, TASK.schema).size, count, np.float32)
    facts = as_bytes(told(Told(dataclasses.replace(RUN, name=name))))
    return release(statistics=question, model=model, scale=np.array([30.0]), facts=facts)


def test_a_table_of_millions_of_persons_is_kept(models: ReceivedModels, tmp_path: Path) -> None:
    """The policy bounds a model's parameters; counts are none."""
    assert service(models, check=Policy(allowed_tasks=(TASK.name,)).check).answer(table(count=6e7)) == ReleaseReply()
    (kept,) = tables_in(tmp_path / "received")
    assert set(kept.sums) == {6e7}


def test_a_run_fills_no_shelf_with_tables_of_many_names(models: ReceivedModels, tmp_path: Path) -> None:
    trainer = service(models)
    for number in range(5):
        assert trainer.answer(table(f"study-{number}")) == ReleaseReply()
    assert [kept.run for kept in tables_in(tmp_path / "received")] == ["study-4"]


def changed(**run: object) -> bytes:
    said = json.loads(FACTS)
    said["run"].update(run)
    return json.dumps(said).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"\xff", b"[" * 50_000, b"1" * 5_000, b" " * (MAX_TOLD_BYTES + 1),
        changed(name="\x1b[2J"), changed(name="../x"), changed(name="a" * 129), changed(name=""), changed(rounds=-1),
        changed(rounds=True), changed(strategy="\u202e"), changed(strategy="a" * 65), changed(institutions=["a\nb"]),
        changed(institutions=5), changed(metrics={"\x1b": 1.0}), changed(metrics={"auc": float("nan")}),
        changed(metrics={"auc": 10**400}), changed(metrics={"m" * 65: 1.0}), changed(privacy={"mechanism": "x"}),
        changed(more=1), FACTS[:-1], FACTS[:-1] + b', "task": {}}',
    ],
    ids=lambda content: repr(content[:24]),
)  # fmt: skip
def test_hostile_facts_are_refused_in_few_words(content: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        from_told(content)
    assert len(str(caught.value)) <= 400 and str(caught.value).isprintable()


def test_facts_survive() -> None:
    assert from_told(FACTS).run == RUN


def test_a_full_shelf_is_told_in_the_own_log_alone(
    models: ReceivedModels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sovfed.clients.models.received.MAX_MODELS", 0)
    assert service(models).answer(release()) == ReleaseReply()
    assert models.list() == []
    assert "the model of run 'study-1' is not kept" in caplog.text


def test_a_full_disk_is_told_in_the_own_log_alone(models: ReceivedModels, tmp_path: Path) -> None:
    (tmp_path / "received").write_text("no folder")
    assert service(models).answer(release()) == ReleaseReply()


def test_without_a_shelf_it_is_acknowledged() -> None:
    assert service(None).answer(release()) == ReleaseReply()


def test_the_plan_is_that_of_the_runs_last_training_here(
    models: ReceivedModels, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    trainer = service(models, lambda task: load_records(task, DataConfig(site="3")))
    request = train_request(run="7", batch_size=16, local_epochs=3, momentum=0.5, rate_end=0.1)
    trainer.answer(request)
    trainer.answer(train_request(run="8", batch_size=8))
    trainer.answer(release())
    assert models.find("study-1").plan == {
        **local_work(request), "seed": 1, "local_epochs": 3, "batch_size": 16, "learning_rate": 0.1,
    }  # fmt: skip
    assert "study-1" in caplog.text


def test_each_delivery_is_kept_anew(models: ReceivedModels) -> None:
    trainer = service(models)
    trainer.answer(release())
    assert models.remove("study-1") == 1
    assert trainer.answer(release()) == ReleaseReply()
    assert models.find("study-1").owner == "7"
