"""Runs without privacy at a real trainer: in the ledger before a record is read, or not answered."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clients.trainer.test_service import TASK, train_request
from tests.server.rounds.test_ledger_heads import Ledgers

from sovfed.clients.data import Dataset, load_records
from sovfed.clients.home.policy import Policy
from sovfed.clients.home.settings import settings_text
from sovfed.clients.ledger.book import PrivacyLedger
from sovfed.clients.ledger.entries import Budget, Unbounded
from sovfed.clients.ledger.file import create_ledger, ledger_path, ledgers, read_ledger
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.process import ledger_opener
from sovfed.clients.trainer.service import TrainerService
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.host.settings import settings_file
from sovfed.federation.messages import EvaluateRequest, ProfileRequest, Refusal, Request
from sovfed.federation.tasks import Task

NAME = Budget().population_name
TRAINER = ("-m", "sovfed.clients.trainer.process")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[PrivacyLedger]:
    found = ledger_opener(tmp_path, Policy())()
    yield found
    found.unlock()


def entered(home: Path) -> list[tuple[str, str]]:
    return [
        (one.entry.run, one.entry.purpose) for one in read_ledger(home, NAME)[0] if isinstance(one.entry, Unbounded)
    ]


def requests() -> list[Request]:
    asked = train_request()
    evaluate = EvaluateRequest(
        run="r", round=0, task=TASK.name, model=asked.model, scale=asked.scale, digest=TASK.digest
    )
    return [
        ProfileRequest(run="r", task=TASK.name, digest=TASK.digest),
        asked,
        dataclasses.replace(asked, round=2),
        evaluate,
    ]


def test_every_kind_of_run_without_privacy_is_entered_before_a_record_is_read(
    ledger: PrivacyLedger, tmp_path: Path
) -> None:
    seen: list[int] = []

    def load(task: Task) -> Dataset:
        seen.append(len(entered(tmp_path)))
        return load_records(task, DataConfig(site="3"))

    service = TrainerService(RecordSource(load, "3"), Runtime("cpu"), books=Books(lambda: ledger))
    assert not any(isinstance(service.answer(request), Refusal) for request in requests())
    assert seen == [1]  # the records are loaded once, and the entry was there
    assert entered(tmp_path) == [("r", "profile"), ("r", "train"), ("r", "evaluate")]


def test_masked_runs_without_privacy_are_entered_too(tmp_path: Path) -> None:
    world = Ledgers(tmp_path)
    world.rounds.plan = world.rounds.before = None
    world.rounds.profile()
    world.rounds.train(1)
    world.rounds.evaluate(1)
    for node in (1, 2, 3):
        assert entered(world.home(node)) == [("7", "profile"), ("7", "train"), ("7", "evaluate")]


def test_nothing_is_read_for_a_run_that_cannot_be_entered(ledger: PrivacyLedger, tmp_path: Path) -> None:
    def load(task: Task) -> Dataset:
        raise AssertionError("a record was read")

    service = TrainerService(RecordSource(load, "3"), Runtime("cpu"), books=Books(lambda: ledger))
    ledger_path(tmp_path, NAME).rename(tmp_path / "elsewhere")
    for request in requests():
        assert service.answer(request) == Refusal("privacy")


@pytest.mark.parametrize("source", ["breast_cancer", "csv"])
def test_trainer_of_a_home_with_the_ledger_of_a_connector_says_what_to_do(tmp_path: Path, source: str) -> None:
    """As an older version left it: a new budget for the same persons is never begun."""
    create_ledger(tmp_path, "uci_heart", 1.7e9)
    (tmp_path / "policy.yaml").write_text(settings_text(Policy(allowed_tasks=("breast_cancer",)), "of a test"))
    tmp_path.chmod(0o700)
    settings = settings_file(tmp_path, ClientConfig(home=str(tmp_path), device="cpu", data=DataConfig(source=source)))
    command = [sys.executable, *TRAINER, "--home", str(tmp_path), "--config", str(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 3
    assert "has the ledger 'uci_heart'" in done.stderr and "sovfed client ledger adopt uci_heart" in done.stderr
    assert ledgers(tmp_path) == ["uci_heart"]
