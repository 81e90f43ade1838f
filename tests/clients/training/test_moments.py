"""What an optimizer carries stays at the institution from one round to the next, and nowhere longer than that."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sovfed.clients.data import load_records
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.service import TrainerService
from sovfed.clients.training.moments import MAX_RUNS
from sovfed.clients.training.personal import FOLDER, PersonalStates
from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.messages import Refusal, ReleaseRequest, TrainReply, TrainRequest
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.loop import blank_request

TASK = get_task("breast_cancer")
SCALE = np.concatenate([np.full(30, 0.0), np.full(30, 0.5)])


def trainer(home: Path, halfway: Any = None) -> TrainerService:
    """Started anew, with what the last one left in `home`."""
    states = PersonalStates(home / FOLDER)
    source = DataConfig(source="breast_cancer", site="3")
    records = RecordSource(lambda task: load_records(task, source), "3")
    return TrainerService(records, Runtime("cpu", halfway=halfway), states=states)


def request(number: int, **changes: Any) -> TrainRequest:
    made = TrainRequest(
        run="7", round=number, task=TASK.name, seed=1, local_epochs=1, local_steps=3, batch_size=16, optimizer="adamw",
        learning_rate=0.01, proximal_mu=0.0, model=initial_vector(TASK, 0), scale=SCALE, digest=TASK.digest,
        keep="study", keep_state=True,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def update(service: TrainerService, asked: TrainRequest) -> np.ndarray:
    reply = service.answer(asked)
    assert isinstance(reply, TrainReply), reply
    return reply.update


def files(home: Path) -> list[str]:
    return sorted(path.name.split(".", 2)[2] for path in (home / FOLDER).glob("*"))


@pytest.mark.parametrize(
    ("optimizer", "more"), [("muon", ["task.gradient_clip=1"]), ("adamw", []), ("sgd", ["task.momentum=0.9"])]
)
def test_rounds_with_kept_moments_are_one_long_local_run(optimizer: str, more: list[str], tmp_path: Path) -> None:
    """One institution alone, a step on all of its records: 5 rounds of 4 steps, and one round of 20."""
    config = compose([
        f"task.optimizer={optimizer}", "task.learning_rate=0.02", "task.batch_size=10000", "rounds=5", *more
    ]).config  # fmt: skip

    def model(rounds: int, steps: int, *, kept: bool) -> np.ndarray:
        task = dataclasses.replace(config.task, local_steps=steps, keep_state=kept)
        service, vector = trainer(tmp_path / f"{rounds}-{kept}"), initial_vector(TASK, 0)
        for number in range(1, rounds + 1):
            asked = blank_request(dataclasses.replace(config, task=task), TASK, "7", "study", number)
            vector = vector + update(service, dataclasses.replace(asked, model=vector, scale=SCALE))
        return vector

    long, kept, fresh = model(1, 20, kept=False), model(5, 4, kept=True), model(5, 4, kept=False)
    scale = np.abs(long).max()
    assert np.abs(kept - long).max() < 1e-4 * scale
    assert np.abs(fresh - long).max() > 1e-2 * scale


def test_moments_survive_the_trainer_and_are_the_owners_alone(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    update(whole, request(1))
    expected = update(whole, request(2))
    update(trainer(tmp_path / "killed"), request(1))
    assert np.array_equal(update(trainer(tmp_path / "killed"), request(2)), expected)
    assert not np.array_equal(update(trainer(tmp_path / "fresh"), request(2)), expected)
    kept = list((tmp_path / "killed" / FOLDER).glob("*.moments.safetensors"))
    assert len(kept) == 2
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}


def test_a_round_that_was_missed_costs_the_moments(tmp_path: Path) -> None:
    service = trainer(tmp_path / "missed")
    for number in (1, 2):
        update(service, request(number))
    assert np.array_equal(update(service, request(4)), update(trainer(tmp_path / "fresh"), request(4)))
    assert files(tmp_path / "missed") == ["4.moments.safetensors"]


def test_a_round_that_is_repeated_begins_with_the_moments_that_it_began_with(tmp_path: Path) -> None:
    """Its first attempt came to nothing; so did the last round of a run that is taken up again."""
    service = trainer(tmp_path)
    update(service, request(1))
    expected = update(service, request(2))
    again = trainer(tmp_path)
    assert np.array_equal(update(again, request(2)), expected)
    assert np.array_equal(update(trainer(tmp_path), request(2, run="8")), expected)


@pytest.mark.parametrize(
    "changed",
    [{"beta_1": 0.5}, {"optimizer": "muon"}, {"optimizer": "sgd", "momentum": 0.5}, {"seed": 2}, {"keep": "another"}],
)
def test_of_another_optimizer_or_run_there_are_none(changed: dict[str, Any], tmp_path: Path) -> None:
    service = trainer(tmp_path / "one")
    update(service, request(1))
    came = update(service, request(2, **changed))
    assert np.array_equal(came, update(trainer(tmp_path / "fresh"), request(2, **changed)))


def test_when_the_records_are_others_there_are_none(tmp_path: Path) -> None:
    """Who has opted out since is in no moment that is gone on with."""

    class Source:
        def __init__(self, stamp: int) -> None:
            self.stamp = stamp

        def source(self, task: object) -> int:
            return self.stamp

        def begin(self, key: object) -> None:
            return None

        def due(self) -> bool:
            return False

        def end(self) -> None:
            return None

    update(trainer(tmp_path, halfway=Source(1)), request(1))
    came = update(trainer(tmp_path, halfway=Source(2)), request(2))
    assert np.array_equal(came, update(trainer(tmp_path / "fresh"), request(2)))


def test_moments_that_cannot_be_read_are_done_without(tmp_path: Path) -> None:
    update(trainer(tmp_path), request(1))
    for path in (tmp_path / FOLDER).glob("*"):
        path.write_bytes(b"cut short")
    assert np.array_equal(update(trainer(tmp_path), request(2)), update(trainer(tmp_path / "fresh"), request(2)))


def test_they_go_with_the_run_with_a_purge_and_when_others_come(tmp_path: Path) -> None:
    service = trainer(tmp_path)
    update(service, request(1))
    assert [(kept.run, kept.kind) for kept in PersonalStates(tmp_path / FOLDER).list()] == [("study", "moments")]
    assert PersonalStates(tmp_path / FOLDER).remove("another") == 0
    assert PersonalStates(tmp_path / FOLDER).remove("study") == 1  # as `client purge` does
    assert files(tmp_path) == []
    update(service, request(2))
    end = ReleaseRequest(
        run="7", round=2, task=TASK.name, model=initial_vector(TASK, 0), scale=SCALE, facts=np.zeros(0, np.uint8),
        sha256="0" * 64, digest=TASK.digest,
    )  # fmt: skip
    service.answer(dataclasses.replace(end, run="8"))
    assert files(tmp_path) == ["2.moments.safetensors"]
    service.answer(end)
    assert files(tmp_path) == []
    for number in range(MAX_RUNS + 2):
        update(service, request(1, run=f"1{number}", keep=f"study-{number}"))
    kept = {state.run for state in PersonalStates(tmp_path / FOLDER).list()}
    assert kept == {f"study-{number}" for number in range(2, MAX_RUNS + 2)}


def test_what_has_no_state_or_no_place_for_it_is_refused_before_records_are_touched(tmp_path: Path) -> None:
    service = trainer(tmp_path)
    assert service.answer(request(1, optimizer="sgd")) == Refusal("config")
    assert service.answer(request(1, algorithm="fedbn")) == Refusal("config")
    assert service.answer(request(1, keep="")) == Refusal("protocol")
    placeless = TrainerService(RecordSource(lambda task: pytest.fail("records were read"), "3"), Runtime("cpu"))
    assert placeless.answer(request(1)) == Refusal("protocol")


def test_what_a_trainer_that_was_killed_left_half_written_goes_when_it_starts_again(tmp_path: Path) -> None:
    update(trainer(tmp_path), request(1))
    (kept,) = files(tmp_path)
    name = next((tmp_path / FOLDER).glob("*")).name
    for draft in (f".{name}.abcd1234", ".tmpAb3_9x"):
        (tmp_path / FOLDER / draft).write_bytes(b"half")
    PersonalStates(tmp_path / FOLDER).forget_drafts()  # as the trainer's process does
    assert files(tmp_path) == [kept]
