"""Whose task it is: a request is answered by the institution's task of that name and digest, or not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sovfed.clients.trainer.admission import check_shapes, resolve, sums_width
from sovfed.federation.errors import ConfigError, ProtocolError, WrongTaskError, wire_code
from sovfed.federation.messages import EvaluateRequest, ProfileRequest, SumRequest, TrainRequest
from sovfed.federation.tasks import Task, initial_vector
from sovfed.federation.tasks.registry import get_task, versions

CNN, HEART = get_task("digits_cnn"), get_task("heart")


def profile(task: Task, /, **changes: object) -> SumRequest:
    request = ProfileRequest(run="r", task=task.name, digest=task.digest)
    return replace(request, **changes)  # type: ignore[arg-type]


def train(task: Task, /, **changes: object) -> TrainRequest:
    request = TrainRequest(
        run="r", round=1, task=task.name, seed=1, local_epochs=1, batch_size=32, learning_rate=0.1, proximal_mu=0.0,
        model=initial_vector(task, 0), scale=task.transform.public_scale, digest=task.digest,
    )  # fmt: skip
    return replace(request, **changes)  # type: ignore[arg-type]


def test_the_task_of_that_name_and_digest_is_had() -> None:
    assert resolve(profile(HEART), versions) is HEART


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": ""},
        {"digest": CNN.digest},
        {"digest": HEART.digest[:-1] + ("0" if HEART.digest[-1] != "0" else "1")},
        {"digest": HEART.digest[:12]},  # a part of one says nothing
        {"digest": HEART.digest.upper()},
        {"task": "hart"},
        {"task": "digits_cnn"},
    ],
)
def test_another_digest_or_name_is_refused_as_another_task(changes: dict[str, str]) -> None:
    with pytest.raises(WrongTaskError) as caught:
        resolve(profile(HEART, **changes), versions)
    assert wire_code(caught.value) == "wrong-task"
    assert HEART.digest[:12] in str(caught.value) or changes.get("task")  # the operator can compare


def test_group_normalisation_has_a_digest_of_its_own() -> None:
    group = CNN.with_normalisation("group")
    assert resolve(profile(CNN), versions) is CNN
    assert resolve(profile(group, normalisation="group"), versions) is group
    for request in (profile(CNN, normalisation="group"), profile(group)):
        with pytest.raises(WrongTaskError):
            resolve(request, versions)


def test_of_several_versions_the_one_that_is_asked_for_answers() -> None:
    """So runs of an older version go on while another is there already."""
    new = replace(HEART, version="2")
    for task in (HEART, new):
        assert resolve(profile(task), lambda _: [HEART, new]) is task
    with pytest.raises(WrongTaskError, match=rf"{HEART.digest[:12]}…, {new.digest[:12]}… here"):
        resolve(profile(replace(HEART, version="3")), lambda _: [HEART, new])


def test_a_task_whose_model_cannot_be_built_here_is_none_of_this_institution() -> None:
    def broken(_: str) -> list[Task]:
        raise ConfigError("the weights are not here")

    with pytest.raises(WrongTaskError, match="the weights are not here"):
        resolve(profile(HEART), broken)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, None),
        ({"model": np.zeros(13, np.float32)}, ProtocolError),
        ({"model": np.zeros(15, np.float32)}, ProtocolError),
        ({"scale": np.zeros(25)}, ProtocolError),
        ({"scale": np.zeros(13 + 13 + 2)}, ProtocolError),
        ({"control": np.zeros(14, np.float32)}, ProtocolError),
        ({"control": np.zeros(14, np.float32), "algorithm": "scaffold"}, None),
        ({"algorithm": "scaffold"}, ProtocolError),
        ({"algorithm": "fedbn"}, ConfigError),  # a linear model has no normalisation
    ],
)
def test_vectors_have_the_lengths_of_the_task(changes: dict[str, object], error: type[Exception] | None) -> None:
    if error is None:
        check_shapes(train(HEART, **changes), HEART)
        return
    with pytest.raises(error):
        check_shapes(train(HEART, **changes), HEART)


def test_a_run_with_groupnorm_sends_the_shorter_model() -> None:
    """Without running means and variances of 16 and 32 channels."""
    group = CNN.with_normalisation("group")
    assert CNN.parameters - group.parameters == 2 * (16 + 32)
    check_shapes(train(group, normalisation="group"), group)
    with pytest.raises(ProtocolError, match="model of shape"):
        check_shapes(train(CNN, normalisation="group"), group)


def test_replies_are_as_wide_as_profile_or_metrics() -> None:
    assert sums_width(profile(HEART), HEART) == 3 * 13
    assert sums_width(train(HEART), HEART) == HEART.metrics.size
    evaluate = EvaluateRequest(run="r", round=1, task="echo", model=np.zeros(3, np.float32), scale=np.zeros(0))
    assert sums_width(evaluate, get_task("echo")) == 1
    assert sums_width(profile(get_task("echo")), get_task("echo")) == 0
