"""The institution's bounds on local training, and why optimizers that normalise each coordinate need its consent."""

from __future__ import annotations

import dataclasses
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from tests.clients.trainer.test_service import train_request

from sovfed.clients.home.policy import Policy
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import PolicyError
from sovfed.federation.messages import PrivateRequest, TrainReply, TrainRequest
from sovfed.federation.optimizers import make
from sovfed.federation.plan import LocalPlan

POLICY = Policy(allowed_tasks=("heart",), allow_plain_updates=True, require_privacy=False)
LAX = dataclasses.replace(POLICY, allowed_optimizers=("sgd", "adamw", "muon"))
MODEL, SCALE = np.zeros(10, np.float32), np.zeros(0)
TRAIN = TrainRequest("r", 1, "heart", 0, 1, 8, 0.1, 0.0, MODEL, SCALE)
INSTITUTION = PrivateRequest(
    "r", "g", 1, "heart", "institution", 10, 1, 2, 1.1, 1.0, 1.0, 1e-6, 3, 16, 25.0, 7, 1, 16, 0.1, MODEL
)


def check(policy: Policy, **changes: Any) -> None:
    """The part of the policy that is about the plan."""
    request = dataclasses.replace(TRAIN, **changes)
    policy._check_plan(request.plan, private=False)


def test_values_at_the_bounds_pass() -> None:
    check(POLICY)
    check(POLICY, local_steps=10_000, accumulation=1_000, momentum=0.999, weight_decay=10.0, learning_rate=10.0)
    check(LAX, optimizer="adamw")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"local_steps": 10_001}, "local_steps 10001 is above max_local_steps 10000"),
        ({"accumulation": 1_001}, "accumulation 1001 is above max_accumulation 1000"),
        ({"momentum": 0.9999}, "momentum 0.9999 is above max_momentum 0.999"),
        ({"weight_decay": 11.0}, "weight_decay 11.0 is above max_weight_decay 10.0"),
        ({"learning_rate": 11.0, "rate_start": 0.0}, "learning_rate 11.0 is above max_learning_rate 10.0"),
        ({"optimizer": "adamw"}, r"optimizer 'adamw' is not in allowed_optimizers \['sgd'\]"),
        ({"optimizer": "brought"}, "optimizer 'brought' is not in allowed_optimizers"),
    ],
)
def test_training_outside_the_bounds_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        check(POLICY, **change)


def test_noised_updates_may_come_from_any_built_in_optimizer_and_from_no_other() -> None:
    POLICY.check(dataclasses.replace(INSTITUTION, optimizer="muon", begin=np.zeros(1, np.uint8)))
    with pytest.raises(PolicyError, match="allowed_optimizers"):
        POLICY.check(dataclasses.replace(INSTITUTION, optimizer="brought"))


def test_the_sum_after_one_step_of_adamw_tells_the_sign_of_each_institutions_own_update() -> None:
    """Why `allowed_optimizers` has sgd alone: every coordinate of the sum is Σ ±nᵢ · rate."""
    counts, size, rate = (303, 261, 46, 130), 2_000, 0.01
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(size, generator=generator) for _ in counts]

    def summed(plan: LocalPlan) -> np.ndarray:
        total = torch.zeros(size)
        for gradient, count in zip(own, counts, strict=True):
            model = [torch.zeros(size)]
            optimizer = make(plan)
            optimizer.step(model, [gradient], optimizer.init(model), rate)
            total += count * model[0]
        return total.numpy()

    levels = {
        round(sum(s * n for s, n in zip(signs, counts, strict=True))): signs for signs in product((-1, 1), repeat=4)
    }
    read = np.array([levels[round(value)] for value in summed(LocalPlan(optimizer="adamw")) / -rate])
    assert (np.sign(torch.stack(own).numpy()) == read.T).all()
    assert len(np.unique(np.round(summed(LocalPlan()) / rate))) > 1_000  # of sgd: as many values as coordinates, about


@pytest.mark.parametrize("plan", [{}, {"accumulation": 2}, {"momentum": 0.9}, {"algorithm": "fednova"}])
def test_steps_end_at_the_passes_that_the_policy_allows(plan: dict[str, Any]) -> None:
    """However many steps are asked for: as many epochs, to the bit, and nothing that tells the number of records."""
    config = ClientConfig(device="cpu", data=DataConfig(site="3"))
    trainer = make_trainer(config, Rules(reproducible=True, most_epochs=3))
    by_steps = trainer.answer(train_request(local_steps=10_000, **plan))
    by_epochs = trainer.answer(train_request(local_epochs=3, **plan))
    assert isinstance(by_steps, TrainReply) and isinstance(by_epochs, TrainReply)
    assert by_steps.steps == by_epochs.steps > 0
    assert np.array_equal(by_steps.update, by_epochs.update)
    few = trainer.answer(train_request(local_steps=2, **plan))
    assert isinstance(few, TrainReply) and few.steps == 2
