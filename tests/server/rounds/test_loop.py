"""The round loop over a real ClientApp in memory: hostile, failing and absent institutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from sovfed.clients.home.policy import Policy
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.config import ClientConfig, Config, SecaggConfig, ServerConfig
from sovfed.federation.errors import CohortError, DeclinedError
from sovfed.federation.messages import (
    EvaluateRequest,
    ProfileReply,
    ProfileRequest,
    Refusal,
    Reply,
    Request,
    TrainReply,
    TrainRequest,
)
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.aggregation import PlainAggregation
from sovfed.server.rounds.loop import Rounds
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.grid import InMemoryGrid

Behaviour = Callable[[Request], Reply]
TASK = get_task("breast_cancer")
REACH = np.repeat([0.01, 0.1, 1.0], 10)  # of a column, in halves of its declared range, where `honest` is told 1


class Scripted:
    """A trainer that answers as it is told."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    def answer(self, request: Request) -> Reply:
        return self.behaviour(request)


def honest(value: float, count: int) -> Behaviour:
    def answer(request: Request) -> Reply:
        if isinstance(request, ProfileRequest):
            u = value * REACH
            return ProfileReply(sums=np.concatenate([np.full(30, float(count)), count * u, count * u**2]))
        assert isinstance(request, TrainRequest)
        update = np.full(request.model.size, value, dtype=np.float32)
        return TrainReply(
            round=request.round, count=count, seconds=0.0, train_loss=value, update=update,
            evaluation=np.ones(TASK.evaluation_size),
        )  # fmt: skip

    return answer


def rounds(behaviours: list[Behaviour], min_cohort: int) -> Rounds:
    server, secagg = ServerConfig(min_cohort=min_cohort, node_wait_s=0.3), SecaggConfig(enabled=False)
    config = dataclasses.replace(Config(), server=server, secagg=secagg)
    apps = {node: make_client_app(Scripted(behaviour)) for node, behaviour in enumerate(behaviours, start=1)}
    grid = InMemoryGrid(apps)
    aggregation = PlainAggregation(grid, config.server.round_deadline_s)
    made = Rounds(config, "1", grid, make_optimizer(config.strategy), aggregation)
    made.model = np.zeros(4, dtype=np.float32)
    return made


def test_round_is_the_weighted_mean_of_the_updates() -> None:
    made = rounds([honest(1.0, 10), honest(4.0, 30)], min_cohort=2)
    done = made.train(1)
    np.testing.assert_allclose(made.model, np.full(4, 3.25))
    assert (done.participants, done.count, done.train_loss) == ([1, 2], 40, 3.25)
    np.testing.assert_array_equal(done.evaluation, np.full(TASK.evaluation_size, 2.0))


def altered(**changes: object) -> Behaviour:
    def answer(request: Request) -> Reply:
        return dataclasses.replace(honest(9.0, 10)(request), **changes)  # type: ignore[arg-type]

    return answer


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(altered(update=np.full(4, np.nan, dtype=np.float32)), id="NaN"),
        pytest.param(altered(update=np.full(4, np.inf, dtype=np.float32)), id="Inf"),
        pytest.param(altered(update=np.zeros(5, dtype=np.float32)), id="wrong length"),
        pytest.param(altered(update=np.zeros((2, 2), dtype=np.float32)), id="wrong shape"),
        pytest.param(altered(update=np.zeros(4, dtype=np.float64)), id="wrong dtype"),
        pytest.param(altered(round=2), id="another round"),
        pytest.param(altered(count=0), id="no records"),
        pytest.param(altered(count=-5), id="negative records"),
        pytest.param(altered(evaluation=np.ones(3)), id="wrong sums"),
        pytest.param(altered(evaluation=np.full(TASK.evaluation_size, 1e308)), id="sums beyond reach"),
        pytest.param(lambda request: ProfileReply(sums=np.ones(3)), id="wrong kind"),
        pytest.param(lambda request: Refusal(reason="policy"), id="refusal"),
    ],
)
def test_a_bad_reply_is_left_out_and_the_round_goes_on(hostile: Behaviour) -> None:
    made = rounds([honest(1.0, 10), hostile, honest(4.0, 30)], min_cohort=2)
    done = made.train(1)
    assert done.participants == [1, 3] and list(done.refused) == [2]
    np.testing.assert_allclose(made.model, np.full(4, 3.25))


def test_sums_whose_sum_is_beyond_a_float_end_no_run() -> None:
    wild = altered(evaluation=np.full(TASK.evaluation_size, 1.7e308))
    done = rounds([honest(1.0, 10), wild, wild, honest(4.0, 30)], min_cohort=2).train(1)
    assert done.participants == [1, 4] and list(done.refused) == [2, 3]


def test_exception_text_of_an_institution_does_not_reach_the_server() -> None:
    def leaking(request: Request) -> Reply:
        raise ValueError("patient Erika Mustermann, HIV positive")

    made = rounds([honest(1.0, 10), leaking], min_cohort=1)
    done = made.train(1)
    assert done.refused == {2: "failed"}


def test_too_few_updates_end_the_run_with_the_reason_and_leave_the_model() -> None:
    made = rounds([honest(1.0, 10), lambda request: Refusal(reason="failed")], min_cohort=2)
    with pytest.raises(CohortError, match=r"round 3: 1 replies .* minimum cohort is 2.*failed \(2\): The institution"):
        made.train(3)
    np.testing.assert_array_equal(made.model, np.zeros(4))


def test_a_round_waits_for_the_minimum_cohort_and_then_gives_up() -> None:
    made = rounds([honest(1.0, 10)], min_cohort=3)
    with pytest.raises(CohortError, match="1 institutions are connected"):
        made.train(1)


def test_scale_comes_from_sums_over_all_institutions() -> None:
    made = rounds([honest(1.0, 10), honest(4.0, 30)], min_cohort=2)
    made.profile()
    values = np.array([1.0] * 10 + [4.0] * 30)
    mean, spread = np.split(made.scale, 2)
    np.testing.assert_allclose(mean, np.minimum(values.mean() * REACH, 1.0))
    np.testing.assert_allclose(spread, values.std() * REACH)
    assert values.mean() > mean.max() == 1.0  # some columns' bounds are narrower than the values


def test_a_feature_that_never_varies_is_scaled_by_its_range_and_none_by_less_than_a_thousandth_of_it() -> None:
    made = rounds([honest(0.5, 10), honest(0.5, 30)], min_cohort=2)
    made.profile()
    np.testing.assert_allclose(made.scale[30:], 1.0)
    model = np.zeros(TASK.parameters, dtype=np.float32)
    policy = Policy(allowed_tasks=("breast_cancer",), require_privacy=False, allow_plain_updates=True)
    trainer = make_trainer(ClientConfig(device="cpu"), Rules.of(policy, 2**20))
    request = EvaluateRequest("r", 1, TASK.name, model, made.scale, digest=TASK.digest)
    assert not isinstance(trainer.answer(request), Refusal)
    least = np.concatenate([made.scale[:30], np.full(30, 1e-3 * 2)])
    assert not isinstance(trainer.answer(dataclasses.replace(request, scale=least)), Refusal)
    assert trainer.answer(dataclasses.replace(request, scale=least * 0.99)) == Refusal("policy")


def test_a_run_that_every_policy_forbids_says_what_to_do() -> None:
    made = rounds([lambda _: Refusal("policy")] * 3, min_cohort=2)
    with pytest.raises(CohortError, match=r"policy \(1, 2, 3\): .* forbids this request.*client logs trainer"):
        made.train(1)


def test_a_run_without_privacy_that_policies_forbid_says_how_to_start_it() -> None:
    made = rounds([lambda _: Refusal("needs-privacy")] * 3, min_cohort=2)
    with pytest.raises(CohortError, match=r"needs-privacy \(1, 2, 3\): .* start it with privacy=distributed, or ask"):
        made.train(1)


def test_the_first_refusal_is_told_though_the_last_attempt_has_another() -> None:
    codes = iter(["failed"] * 9 + ["policy"] * 6)  # an institution stops answering a run after three failures
    made = rounds([lambda _: Refusal(next(codes))] * 3, min_cohort=2)
    with pytest.raises(CohortError, match=r"refusals: failed \(1, 2, 3\): .*; policy \(1, 2, 3\): "):
        made.train(1)


@pytest.mark.parametrize(("code", "ends"), [("privacy", True), ("failed", False)])
def test_a_private_run_whose_ledgers_refuse_is_not_one_that_is_taken_up_by_itself(code: str, ends: bool) -> None:
    """Each time that it was, those that do not refuse would pay for another sum that never opens."""
    made = rounds([honest(1.0, 10), *[lambda _: Refusal(code)] * 2], min_cohort=2)
    asked = TrainRequest(
        run="1", round=3, task=TASK.name, seed=0, local_epochs=1, batch_size=8, learning_rate=0.1, proximal_mu=0.0,
        model=made.model, scale=np.zeros(60), digest=TASK.digest,
    )  # fmt: skip
    made.plan = SimpleNamespace(request=lambda *_: asked, repeats=9)  # type: ignore[assignment]
    with pytest.raises(CohortError, match=rf"round 3: . replies in 5 attempts.*{code} \(2, 3\)") as raised:
        made.train(3)
    assert isinstance(raised.value, DeclinedError) == ends
