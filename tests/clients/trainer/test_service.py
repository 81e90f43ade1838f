"""The trainer in-process: what it answers, refuses and repeats."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
from tests.records import inputs_of

from sovfed.clients.data import Dataset, load_records
from sovfed.clients.home.policy import Policy
from sovfed.clients.trainer.allowance import Allowance, clear_failures, read_state
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.replies import MAX_RUNS
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.clients.trainer.telling import TOLD_LINES
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import DataError, PolicyError
from sovfed.federation.messages import (
    EvaluateReply,
    EvaluateRequest,
    PrivateRequest,
    ProfileReply,
    ProfileRequest,
    Refusal,
    Request,
    TrainReply,
    TrainRequest,
)
from sovfed.federation.tasks import Task, initial_vector
from sovfed.federation.tasks.registry import get_task, names

TASK = get_task("breast_cancer")
SCALE = np.concatenate([np.full(30, -0.5), np.full(30, 0.5)])


def trainer(site: str = "3") -> TrainerService:
    return make_trainer(ClientConfig(device="cpu", data=DataConfig(site=site)))


def digest_of(name: str) -> str:
    return get_task(name).digest if name in names() else "0" * 64


def train_request(**changes: object) -> TrainRequest:
    """As the coordinator sends it: with the digest of the task of that name."""
    digest = digest_of(str(changes.get("task", TASK.name)))
    request = TrainRequest(
        run="r", round=1, task=TASK.name, seed=1, local_epochs=1, batch_size=32, learning_rate=0.1, proximal_mu=0.0,
        model=initial_vector(TASK, 0), scale=SCALE, digest=digest,
    )  # fmt: skip
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def test_the_three_requests_are_answered() -> None:
    service, request = trainer(), train_request()
    profile = service.answer(ProfileRequest(run="r", task=TASK.name, digest=TASK.digest))
    trained = service.answer(request)
    evaluated = service.answer(
        EvaluateRequest(run="r", round=0, task=TASK.name, model=request.model, scale=request.scale, digest=TASK.digest)
    )
    assert isinstance(profile, ProfileReply)
    assert isinstance(trained, TrainReply)
    assert isinstance(evaluated, EvaluateReply)
    assert trained.count == profile.sums[0] == 32
    assert trained.update.shape == request.model.shape
    assert np.array_equal(trained.evaluation, evaluated.evaluation)
    assert evaluated.evaluation[0] == 14


def test_a_repeated_request_gets_the_same_reply_and_a_changed_one_does_not() -> None:
    service = trainer()
    first = service.answer(train_request())
    assert service.answer(train_request(model=train_request().model.copy())) is first
    other = service.answer(train_request(model=train_request().model + 1))
    assert other is not first
    assert service.answer(train_request(round=2)) is not first
    again = service.answer(train_request())
    assert isinstance(first, TrainReply)
    assert isinstance(again, TrainReply)
    assert again is not first
    assert np.array_equal(first.update, again.update)


def test_replies_are_kept_by_run_and_only_of_the_last_runs() -> None:
    service = trainer()
    first = service.answer(train_request())
    for number in range(MAX_RUNS - 1):
        service.answer(train_request(run=f"other-{number}"))
    assert service.answer(train_request()) is first
    service.answer(train_request(run="one more"))
    assert service.answer(train_request()) is not first


def test_a_failure_crosses_as_a_code_and_its_text_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def broken(task: Task) -> Dataset:
        raise ValueError("patient Ada Lovelace, born 1815-12-10")

    reply = TrainerService(RecordSource(broken, "0"), Runtime("cpu")).answer(train_request())
    assert reply == Refusal(reason="failed")
    assert "Lovelace" not in repr(reply)
    assert "Lovelace" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "hart"}, "wrong-task"),
        ({"digest": ""}, "wrong-task"),
        ({"task": "heart", "digest": TASK.digest}, "wrong-task"),
        ({"normalisation": "group", "task": "digits_cnn"}, "wrong-task"),  # which has a digest of its own
        ({"task": "heart", "scale": np.ones(26), "model": np.zeros(14, np.float32)}, "failed"),
        ({"task": "heart"}, "protocol"),
        ({"model": np.zeros(30, dtype=np.float32)}, "protocol"),
        ({"scale": np.ones(2)}, "protocol"),
        ({"learning_rate": 1e3, "proximal_mu": 1e6, "local_epochs": 20}, "failed"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_code(changes: dict[str, object], reason: str) -> None:
    assert trainer().answer(train_request(**changes)) == Refusal(reason=reason)


def test_a_failure_is_counted_and_after_some_nothing_is_told_until_the_operator_has_looked(tmp_path: Path) -> None:
    loads = []

    def broken(task: Task) -> Dataset:
        loads.append(task)
        raise DataError("not mounted")

    def start() -> TrainerService:
        allowance = Allowance(tmp_path, Policy(max_failures_per_run=2, max_failures_per_day=3))
        return TrainerService(RecordSource(broken, "0"), Runtime("cpu"), books=Books(allowance=allowance))

    def ask(service: TrainerService, run: str) -> str:
        reply = service.answer(train_request(run=run))
        assert isinstance(reply, Refusal)
        return reply.reason

    service = start()
    assert [ask(service, "a") for _ in range(3)] == ["failed", "failed", "policy"]
    service = start()  # again: counted over restarts
    assert ask(service, "a") == "policy"
    assert [ask(service, "b"), ask(service, "c")] == ["failed", "policy"]
    assert len(loads) == 3
    clear_failures(tmp_path)  # by another process: `sovfed client failures --clear`
    assert ask(service, "a") == "failed"


def test_a_table_whose_header_cannot_be_read_is_a_failure_and_told_as_rarely(tmp_path: Path) -> None:
    allowance = Allowance(tmp_path, Policy(max_failures_per_run=2))
    config = ClientConfig(data=DataConfig(source="csv", path=str(tmp_path / "not-mounted.csv")))
    service = make_trainer(config, books=Books(allowance=allowance))
    request = PrivateRequest(
        run="r", grant="r", round=1, task=TASK.name, mechanism="distributed", rounds=10, steps=1, spare=2,
        noise_multiplier=4.0, sampling_rate=0.5, clip=1.0, delta=1e-6, honest=3, grid_bits=16, batch=100.0, seed=0,
        local_epochs=1, batch_size=16, learning_rate=0.5, model=initial_vector(TASK, 0), digest=TASK.digest,
    )  # fmt: skip
    told = [service.answer(request) for _ in range(4)]
    assert [one.reason for one in told if isinstance(one, Refusal)] == ["failed", "failed", "policy", "policy"]


def test_what_is_refused_before_records_are_touched_is_no_failure(tmp_path: Path) -> None:
    def load(task: Task) -> Dataset:
        raise AssertionError("a record was touched")

    allowance = Allowance(tmp_path, Policy(max_failures_per_run=1))
    service = TrainerService(RecordSource(load, "0"), Runtime("cpu"), books=Books(allowance=allowance))
    wrong = [
        train_request(model=np.zeros(30, np.float32)), train_request(scale=np.ones(2)), train_request(task="hart"),
        train_request(digest="1" * 64), train_request(scale=SCALE + 2.0),
        train_request(algorithm="fedbn", keep="x"), train_request(algorithm="ditto"),
        train_request(control=np.zeros(31, np.float32)),
        train_request(begin=np.ones(8, np.uint8)),
    ]  # fmt: skip
    codes = [service.answer(request) for request in wrong]
    assert all(isinstance(code, Refusal) and code.reason != "failed" for code in codes), codes
    assert read_state(tmp_path).failures == 0


def _scaled(**places: float) -> np.ndarray:
    """A scale with column 3's mean or deviation at a share of its declared range, which is 2 wide in u."""
    scale = SCALE.copy()
    if "mean" in places:
        scale[3] = 2 * places["mean"] - 1
    if "spread" in places:
        scale[30 + 3] = 2 * places["spread"]
    return scale


def _asked_with(scale: np.ndarray, least_spread: float = 1e-3) -> set[str]:
    """The codes of a training and an evaluation, whose records cannot be read."""

    def load(task: Task) -> Dataset:
        raise DataError("a record was touched")

    service = TrainerService(RecordSource(load, "0"), Runtime("cpu"), Rules(least_spread=least_spread))
    model = train_request().model
    evaluate = EvaluateRequest(run="r", round=1, task=TASK.name, model=model, scale=scale, digest=TASK.digest)
    replies = [service.answer(request) for request in (train_request(scale=scale), evaluate)]
    return {reply.reason for reply in replies if isinstance(reply, Refusal)}


@pytest.mark.parametrize(
    "scale", [SCALE, _scaled(mean=0.0), _scaled(mean=1.0), _scaled(spread=1e-3), _scaled(spread=1)]
)
def test_a_scale_that_columns_could_have_passes(scale: np.ndarray) -> None:
    assert _asked_with(scale) == {"failed"}


@pytest.mark.parametrize(
    "scale",
    [
        _scaled(mean=-0.01), _scaled(mean=1.01), _scaled(spread=0.9e-3), _scaled(spread=0.0), _scaled(spread=1.01),
        _scaled(spread=-0.5), _scaled(mean=float("nan")), _scaled(spread=float("inf")), _scaled(spread=float("nan")),
    ],
)  # fmt: skip
def test_a_scale_that_looks_at_single_values_is_refused_before_a_record_is_touched(scale: np.ndarray) -> None:
    assert _asked_with(scale) == {"policy"}


def test_the_policy_says_how_small_a_deviation_may_be() -> None:
    assert _asked_with(_scaled(spread=0.01), least_spread=0.02) == {"policy"}
    assert _asked_with(_scaled(spread=0.02), least_spread=0.02) == {"failed"}
    assert Policy().least_spread == 1e-3


def test_a_task_that_is_not_standardised_has_no_scale() -> None:
    task = get_task("pneumonia")
    service = make_trainer(ClientConfig(device="cpu", data=DataConfig(source="pneumoniamnist")))
    model = initial_vector(task, 0)
    for scale, code in ((np.zeros(0), "failed"), (np.zeros(2), "protocol"), (np.ones(2 * 784), "protocol")):
        assert service.answer(train_request(task="pneumonia", model=model, scale=scale)) == Refusal(reason=code)


def test_refusals_are_one_line_each_and_many_of_them_few(caplog: pytest.LogCaptureFixture) -> None:
    service = trainer()
    for _ in range(3_000):
        service.answer(train_request(scale=np.ones(2)))
    lines = [record for record in caplog.records if "refused" in record.getMessage()]
    assert TOLD_LINES <= len(lines) <= TOLD_LINES + 12
    assert not any(record.exc_info or "\n" in record.getMessage() for record in lines)


def test_the_policy_is_asked_first_and_every_time() -> None:
    allowed = True

    def check(request: Request) -> None:
        if not allowed:
            raise PolicyError("no")

    service = make_trainer(ClientConfig(device="cpu", data=DataConfig(site="3")), Rules(check))
    assert isinstance(service.answer(train_request()), TrainReply)
    allowed = False
    assert service.answer(train_request()) == Refusal(reason="policy")


def test_records_that_appear_later_are_then_read() -> None:
    there = False

    def load(task: Task) -> Dataset:
        if not there:
            raise DataError("not mounted yet")
        return load_records(task, DataConfig(site="3"))

    service = TrainerService(RecordSource(load, "3"), Runtime("cpu"))
    with pytest.raises(DataError):
        service.prepare(TASK.name)
    assert not service.health().ready
    assert service.health().reason == "data"
    assert service.answer(train_request()) == Refusal(reason="failed")
    there = True
    assert isinstance(service.answer(train_request()), TrainReply)
    assert service.health().ready
    assert service.health().device == "cpu"
    assert service.health().answered == 2


def test_no_record_stands_in_an_info_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    service = trainer()
    service.prepare(TASK.name)
    service.answer(train_request())
    records = load_records(TASK, DataConfig(site="3"))
    assert "46 records of 46 persons: 32 train, 14 held out" in caplog.text
    assert not [value for value in inputs_of(records)[:, 3] if f"{value:g}" in caplog.text]


@pytest.mark.parametrize("length", [2_500, 7])
def test_the_echo_adds_one_everywhere_and_needs_no_data(length: int) -> None:
    service = make_trainer(ClientConfig(data=DataConfig(source="none")))
    empty = np.zeros(0)
    reply = service.answer(train_request(task="echo", model=np.zeros(length, dtype=np.float32), scale=empty))
    assert isinstance(reply, TrainReply)
    assert reply.update.tolist() == [1.0] * length
    assert reply.evaluation.shape == (get_task("echo").evaluation_size,)
