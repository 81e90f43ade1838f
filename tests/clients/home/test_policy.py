"""The institution's policy: fail closed, exact bounds, and the files that `init` writes."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clients.trainer.test_service import train_request

from sovfed.clients.home.folder import create, load_config
from sovfed.clients.home.policy import POLICY, Policy, load_policy
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ConfigError, NotPrivateError, PolicyError
from sovfed.federation.messages import (
    EvaluateRequest,
    ProfileRequest,
    Refusal,
    ReleaseRequest,
    TrainReply,
    TrainRequest,
)
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task

OPEN = Policy(
    allowed_tasks=("heart",), allow_plain_updates=True, max_rounds=10, max_local_epochs=2, min_batch_size=8,
    max_batch_size=64, max_parameters=100, require_privacy=False,
)  # fmt: skip
DIGEST = 4 * "0123456789abcdef"
MODEL, SCALE = np.zeros(100, np.float32), np.zeros(4)
TRAIN = TrainRequest(
    run="r", round=10, task="heart", seed=0, local_epochs=2, batch_size=8, learning_rate=0.1, proximal_mu=0.0,
    model=MODEL, scale=SCALE,
)  # fmt: skip


def test_requests_at_the_bounds_pass() -> None:
    OPEN.check(TRAIN)
    OPEN.check(dataclasses.replace(TRAIN, batch_size=64))
    OPEN.check(ProfileRequest(run="r", task="heart"))
    OPEN.check(EvaluateRequest(run="r", round=10, task="heart", model=MODEL, scale=SCALE))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "digits"}, "task 'digits' .*is not in allowed_tasks"),
        ({"round": 11}, "round 11 is above max_rounds 10"),
        ({"local_epochs": 3}, "local_epochs 3 is above max_local_epochs 2"),
        ({"batch_size": 7}, "batch_size 7 is below min_batch_size 8"),
        ({"batch_size": 65}, "batch_size 65 is above max_batch_size 64"),
        ({"model": np.zeros(101, np.float32)}, "parameters 101 is above max_parameters 100"),
    ],
)
def test_request_outside_the_bounds_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        OPEN.check(dataclasses.replace(TRAIN, **change))


def test_evaluation_and_profile_of_other_tasks_are_refused() -> None:
    with pytest.raises(PolicyError):
        OPEN.check(ProfileRequest(run="r", task="digits"))
    with pytest.raises(PolicyError):
        OPEN.check(EvaluateRequest(run="r", round=11, task="heart", model=MODEL, scale=SCALE))


RELEASE = ReleaseRequest("r", 10, "heart", MODEL, SCALE, np.zeros(0, np.uint8), "0" * 64)


def test_a_model_is_taken_of_runs_that_get_no_answer_and_gets_them_none() -> None:
    closed = dataclasses.replace(OPEN, require_privacy=True, allow_plain_updates=False)
    closed.check(RELEASE)
    with pytest.raises(PolicyError):
        closed.check(TRAIN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "digits"}, "allowed_tasks"),
        ({"round": 11}, "max_rounds"),
        ({"model": np.zeros(101, np.float32)}, "max_parameters"),
        ({"model": np.full(100, -1.1e6, np.float32)}, "max_model_value"),
    ],
)
def test_a_model_outside_the_bounds_is_not_taken(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        OPEN.check(dataclasses.replace(RELEASE, **change))


def test_runs_without_privacy_need_consent() -> None:
    assert Policy().require_privacy
    with pytest.raises(NotPrivateError):
        dataclasses.replace(OPEN, require_privacy=True).check(TRAIN)


@pytest.mark.parametrize(
    ("entry", "digest", "passes"),
    [
        ("heart", "", True),
        ("heart", DIGEST, True),
        (f"heart@{DIGEST}", DIGEST, True),
        (f"heart@{DIGEST[:32]}", DIGEST, True),
        (f"heart@{DIGEST[:32]}", "", False),
        (f"heart@{DIGEST[:32]}", DIGEST[:31] + 33 * "0", False),
        (f"heart@{DIGEST[:31]}", DIGEST, False),  # an author could make two tasks that share few digits
        ("heart@", DIGEST, False),
        ("hear", DIGEST, False),
        (f"heart@{DIGEST}0", DIGEST, False),
    ],
)
def test_a_task_is_allowed_by_its_name_or_by_name_and_digest(entry: str, digest: str, passes: bool) -> None:
    policy = dataclasses.replace(OPEN, allowed_tasks=("digits", entry))
    assert policy.allowed_names == ("digits", entry.partition("@")[0])
    request = dataclasses.replace(TRAIN, digest=digest)
    if passes:
        policy.check(request)
        return
    with pytest.raises(PolicyError, match="is not in allowed_tasks"):
        policy.check(request)


@pytest.mark.parametrize("value", [1.001e3, -1.001e3, np.inf, np.nan])
def test_a_model_with_a_value_that_no_trained_one_has_is_refused(value: float) -> None:
    model = MODEL.copy()
    model[7] = 1e3
    OPEN.check(dataclasses.replace(TRAIN, model=model))
    OPEN.check_values(dataclasses.replace(TRAIN, model=model), model.size)
    model[7] = value
    with pytest.raises(PolicyError, match=r"largest parameter .* max_model_value"):
        OPEN.check_values(dataclasses.replace(TRAIN, model=model), model.size)


def test_a_running_variance_may_be_the_square_of_what_a_parameter_may() -> None:
    model = MODEL.copy()
    model[-1] = 1e6
    OPEN.check(dataclasses.replace(TRAIN, model=model))
    OPEN.check_values(dataclasses.replace(TRAIN, model=model), model.size - 1)
    for trained in (model.size, model.size - 1):
        model[-1] = 1e6 if trained == model.size else 1.1e6
        with pytest.raises(PolicyError, match="max_model_value"):
            OPEN.check_values(dataclasses.replace(TRAIN, model=model), trained)


def test_the_trainer_asks_for_parameters_and_running_statistics_apart() -> None:
    task = get_task("digits_cnn")
    config = ClientConfig(device="cpu", data=DataConfig(source="digits", site="1"))
    trainer = make_trainer(config, Rules(check_values=OPEN.check_values))
    request = dataclasses.replace(
        train_request(), task=task.name, digest=task.digest, scale=task.transform.public_scale,
        model=initial_vector(task, 0),
    )  # fmt: skip
    for place, reply in ((-1, TrainReply), (0, Refusal)):
        model = request.model.copy()
        model[place] = 5e4
        assert isinstance(trainer.answer(dataclasses.replace(request, run=str(place), model=model)), reply)


def test_what_would_push_every_update_to_the_clip_is_refused() -> None:
    OPEN.check(dataclasses.replace(TRAIN, learning_rate=10.0))
    with pytest.raises(PolicyError, match="max_learning_rate"):
        OPEN.check(dataclasses.replace(TRAIN, learning_rate=10.5))
    control = np.zeros_like(MODEL)
    control[3] = -3e8
    with pytest.raises(PolicyError, match=r"control .* is above max_model_value"):
        OPEN.check(dataclasses.replace(TRAIN, algorithm="scaffold", keep="k", control=control))


def test_default_policy_allows_nothing() -> None:
    with pytest.raises(PolicyError, match="allowed_tasks"):
        Policy().check(ProfileRequest(run="r", task="heart"))


def test_plain_updates_need_consent() -> None:
    with pytest.raises(PolicyError, match="allow_plain_updates is false"):
        dataclasses.replace(OPEN, allow_plain_updates=False).check(TRAIN)


def test_missing_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="is missing, so nothing is allowed"):
        load_policy(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "", "- a list", "allowed_tasks: heart", "allow_plain_updates: 'yes'", "allow_plain_update: true",
        "max_rounds: -1", "min_batch_size: 10\nmax_batch_size: 9", "max_rounds: .inf",
        "allowed_tasks: !!python/name:os.system", "{", "\x00",
    ],
)  # fmt: skip
def test_policy_that_says_anything_unknown_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / POLICY).write_text(text)
    with pytest.raises(PolicyError, match=r"policy\.yaml"):
        load_policy(tmp_path)


def test_init_writes_private_files_that_read_back_equal(tmp_path: Path) -> None:
    home = tmp_path / "hospital"
    config = ClientConfig(home=str(home), device="cpu", data=DataConfig(source="uci_heart", path="/srv/ heart: #1"))
    create(home, config, OPEN)
    assert load_config(home) == config
    assert load_policy(home) == OPEN
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.glob("*.yaml")} == {0o600}
    assert "secure aggregation" in (home / POLICY).read_text()


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    create(tmp_path / "h", ClientConfig(), OPEN)
    (tmp_path / "h" / "client.yaml").unlink()
    with pytest.raises(ConfigError, match=r"policy\.yaml exists"):
        create(tmp_path / "h", ClientConfig(), Policy())
    assert load_policy(tmp_path / "h") == OPEN


def test_settings_file_that_is_missing_or_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="client init"):
        load_config(tmp_path)
    (tmp_path / "client.yaml").write_text("devise: cpu")
    with pytest.raises(ConfigError, match="did you mean 'device'"):
        load_config(tmp_path)
