"""A model that comes as a change is the whole one, or the request is refused before anything else looks at it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.clients.trainer.test_service import train_request, trainer

from sovfed.clients.trainer.held import MAX_RUNS, UNUSED_S, HeldModels
from sovfed.federation.changes import change_of, changed
from sovfed.federation.codec import decode, encode
from sovfed.federation.messages import Refusal, TrainReply, TrainRequest
from sovfed.federation.secagg.mask import hash_vector
from sovfed.federation.secagg.request import task_digest

EMPTY = np.zeros(0, np.float32)


def first(**changes: object) -> TrainRequest:
    return train_request(hold=True, keep="study", **changes)


def following(before: TrainRequest, run: str = "r", moved: float = 0.01) -> tuple[TrainRequest, TrainRequest]:
    """The next round's request: by a change, and with the whole model."""
    change = change_of(np.full(before.model.size, moved, np.float32))
    whole = dataclasses.replace(before, run=run, round=before.round + 1, model=changed(before.model, change))
    digests: dict[str, Any] = {"base": hash_vector(before.model).hex(), "becomes": hash_vector(whole.model).hex()}
    return dataclasses.replace(whole, model=EMPTY, change=change, **digests), whole


def test_training_from_a_change_is_training_from_the_whole_model() -> None:
    ours, other = trainer(), trainer()
    for service in (ours, other):
        assert isinstance(service.answer(first()), TrainReply)
    by_change, whole = following(first())
    expected, came = other.answer(whole), ours.answer(by_change)
    assert isinstance(expected, TrainReply)
    assert isinstance(came, TrainReply)
    assert came.update.tobytes() == expected.update.tobytes()
    assert ours.answer(by_change) is came  # a transport that asks again
    assert ours.answer(whole) is came
    third, _ = following(whole, run="of-a-resumed-run")
    assert isinstance(ours.answer(third), TrainReply)


def test_who_does_not_hold_the_model_asks_for_the_whole_one() -> None:
    by_change, whole = following(first())
    never, missed, unasked = trainer(), trainer(), trainer()
    missed.answer(train_request(hold=True, keep="study", model=first().model + 1))
    unasked.answer(train_request(keep="study"))
    for service in (never, missed, unasked):
        assert service.answer(by_change) == Refusal("whole-model")
        assert isinstance(service.answer(whole), TrainReply)
    other_run = trainer()
    other_run.answer(first(run="x"))
    assert other_run.answer(dataclasses.replace(by_change, keep="another study")) == Refusal("whole-model")


def test_only_the_newest_runs_models_are_held() -> None:
    service, (by_change, _) = trainer(), following(first())
    service.answer(first())
    for number in range(MAX_RUNS - 1):
        service.answer(train_request(hold=True, keep=f"{number}", run=f"{number}"))
    assert isinstance(service.answer(by_change), TrainReply)
    for number in range(MAX_RUNS):
        service.answer(train_request(hold=True, keep=f"{number}", run=f"{number}"))
    third, _ = following(following(first())[1])
    assert service.answer(third) == Refusal("whole-model")


def test_a_model_that_nothing_was_asked_with_for_an_hour_is_let_go() -> None:
    now = [0.0]
    service = trainer()
    service._held = HeldModels(lambda: now[0])
    service.answer(first())
    by_change, whole = following(first())
    now[0] += UNUSED_S - 1
    service.settle()
    assert isinstance(service.answer(by_change), TrainReply)
    now[0] += UNUSED_S + 1
    service.settle()
    assert service.answer(following(whole)[0]) == Refusal("whole-model")


@pytest.mark.parametrize(
    "forged",
    [
        {"change": change_of(np.full(31, 0.02, np.float32))},  # comes to another model than it says
        {"change": change_of(np.ones(30, np.float32))},
        {"change": np.full(63, 255, np.uint8)},
        {"change": np.zeros(0, np.uint8)},
        {"model": np.zeros(31, np.float32)},
        {"hold": False},
        {"becomes": "0" * 64},
    ],
)
def test_a_change_that_does_not_come_to_its_model_is_refused_and_nothing_is_lost(forged: dict[str, object]) -> None:
    service, (by_change, _) = trainer(), following(first())
    assert by_change.change.size == 63
    service.answer(first())
    assert service.answer(dataclasses.replace(by_change, **forged)) == Refusal("protocol")  # type: ignore[arg-type]
    assert isinstance(service.answer(by_change), TrainReply)


def test_a_model_that_is_not_finite_cannot_come_of_a_change() -> None:
    """It would pass its digest, and base and change are finite."""
    service, start = trainer(), first(model=np.full(31, np.finfo(np.float32).max))
    service._held.hold(start)
    change = change_of(np.full(31, 1e34, np.float32))
    model = changed(start.model, change)
    assert np.isinf(model).all()
    forged = dataclasses.replace(
        start, model=EMPTY, change=change, base=hash_vector(start.model).hex(), becomes=hash_vector(model).hex()
    )
    assert service.answer(forged) == Refusal("protocol")


def test_without_changes_nothing_of_them_is_sent_or_digested() -> None:
    plain = train_request()
    _, scalars, vectors = encode(plain)
    assert not {"hold", "base", "becomes", "change"} & {*scalars, *vectors}
    assert vars(decode("train", scalars, vectors)).keys() == vars(plain).keys()
    assert task_digest(plain) != task_digest(dataclasses.replace(plain, hold=True))
