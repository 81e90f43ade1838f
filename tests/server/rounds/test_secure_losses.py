"""Who is lost while a secure sum is collected or opened: the sum is of those that are left, or none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.server.rounds.secure_world import (
    PRIVATE,
    TASK,
    Hook,
    World,
    fail,
    private,
    trained,
)

from sovfed.clients.trainer.masking import PrivateUpdate
from sovfed.clients.training.private import PrivateTraining, SumNumber
from sovfed.federation.errors import CohortError
from sovfed.federation.messages import (
    PrivateRequest,
    Request,
    SecaggRequest,
    TrainRequest,
)
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.terms import Terms
from sovfed.server.rounds.secure_aggregation import SecureAggregation


@pytest.mark.parametrize("lost", [1, 2])
def test_the_sum_is_that_of_the_survivors_of_the_upload(lost: int) -> None:
    world, plain = World(6), World(6, "secagg=none")
    for one in (world, plain):
        one.rounds.profile()
        for node in range(1, lost + 1):
            one.places[node].before = fail(TrainRequest)
    done, expected = world.rounds.train(1), plain.rounds.train(1)
    assert sorted(done.participants) == sorted(expected.participants) == list(range(lost + 1, 7))
    assert done.count == expected.count
    np.testing.assert_allclose(world.rounds.model, plain.rounds.model, atol=1e-5)


def test_holders_up_to_the_tolerance_may_be_lost_before_the_unmasking() -> None:
    world, plain = World(6), World(6, "secagg=none")  # t = 5 of 6: one holder to spare
    for one in (world, plain):
        one.rounds.profile()
    world.places[2].before = fail(SecaggRequest, step="reveal")
    done = world.rounds.train(1)
    plain.rounds.train(1)
    assert len(done.participants) == 6 and done.attempts == 1
    np.testing.assert_allclose(world.rounds.model, plain.rounds.model, atol=1e-5)


def test_holders_that_come_back_while_unmasking_are_asked_again() -> None:
    world, plain = World(6), World(6, "secagg=none")
    for one in (world, plain):
        one.rounds.profile()
    for node in (2, 3):
        world.places[node].before = fail(SecaggRequest, step="reveal")
    assert world.rounds.train(1).attempts == 1
    plain.rounds.train(1)
    np.testing.assert_allclose(world.rounds.model, plain.rounds.model, atol=1e-5)


def lose_while_unmasking(world: World, *nodes: int) -> None:
    """`nodes` vanish for good when they are asked to unmask."""

    def gone(node: int) -> Hook:
        def hook(request: Request) -> None:
            if isinstance(request, SecaggRequest) and request.step == "reveal":
                world.apps.pop(node, None)
                raise ConnectionError("the institution is gone")

        return hook

    for node in nodes:
        world.places[node].before = gone(node)


def test_a_sum_that_never_opened_is_asked_for_again_over_the_same_institutions_only() -> None:
    """An institution that was not in it is left out, or no holder would answer."""
    world = World(6)
    world.rounds.profile()
    world.places[1].before = fail(TrainRequest)
    for node in (2, 3):
        world.places[node].before = fail(SecaggRequest, times=3, step="reveal")
    done = world.rounds.train(1)
    assert done.attempts == 2
    assert sorted(done.participants) == [2, 3, 4, 5, 6]


def test_institutions_lost_for_good_while_unmasking_do_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    """The minimum cohort that is left goes on under a new name, which the others' policies allow."""
    world = World(5)
    trained(world, 1)
    before = world.rounds.model.copy()
    lose_while_unmasking(world, 4, 5)
    done = world.rounds.train(2)
    assert (sorted(done.participants), done.attempts) == ([1, 2, 3], 2)
    assert not np.array_equal(world.rounds.model, before)
    assert "3 of 4 shares that unmask the sum; hospital-4, hospital-5 gone" in caplog.text
    assert "they differ by hospital-4, hospital-5" in caplog.text  # in each institution's own log
    assert sorted(world.rounds.train(3).participants) == [1, 2, 3]


def test_institutions_that_fall_silent_while_unmasking_do_not_end_the_run() -> None:
    """They stay connected, as one whose trainer hangs does, and nobody can tell them from slow ones."""
    world = World(5)
    trained(world, 1)
    for node in (4, 5):
        fall_silent(world, node)
    done = world.rounds.train(2)
    assert (sorted(done.participants), done.late) == ([1, 2, 3], [4, 5])
    assert done.attempts <= 3
    after = world.rounds.train(3)
    assert (sorted(after.participants), after.attempts, after.left_out) == ([1, 2, 3], 1, [4, 5])
    for node in world.grid.silent:
        world.places[node].before = lambda request: None
    world.grid.silent.clear()
    world.grid.heard_at = float("inf")
    assert sorted(world.rounds.train(4).participants) == [1, 2, 3, 4, 5]


def fall_silent(world: World, node: int) -> None:
    """From the next unmasking on, nothing comes of `node`."""

    def before(request: Request) -> None:
        if isinstance(request, SecaggRequest) and request.step == "reveal":
            world.grid.silent.add(node)

    world.places[node].before = before


def test_where_the_policy_forbids_it_the_run_ends_and_says_why() -> None:
    world = World(5, terms=Terms(min_cohort=3, colluders=0))
    trained(world, 1)
    lose_while_unmasking(world, 4, 5)
    with pytest.raises(CohortError, match=r"3 of 4 shares .*hospital-4, hospital-5 gone; refusals: policy"):
        world.rounds.train(2)


def test_where_the_policy_refuses_differencing_a_newcomer_waits_for_another_run() -> None:
    """The others go on as they were, for which one attempt is lost."""
    world = World(5, terms=Terms(min_cohort=3, colluders=0))
    trained(world, 1)
    world.add(6, MemoryStore())
    assert [world.rounds.train(number).attempts for number in (2, 3)] == [2, 1]
    assert sorted(world.rounds.train(4).participants) == [1, 2, 3, 4, 5]


def test_where_the_policy_refuses_differencing_an_upload_that_was_lost_is_made_again() -> None:
    world = World(5, terms=Terms(min_cohort=3, colluders=0))
    trained(world, 1)
    world.places[2].before = fail(TrainRequest)
    done = world.rounds.train(2)
    assert (sorted(done.participants), done.attempts) == ([1, 2, 3, 4, 5], 2)


def test_a_private_sum_under_another_number_of_the_same_run_is_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    world = private(World(6, *PRIVATE))
    released: list[PrivateUpdate] = []
    usual = PrivateTraining.update

    def noted(
        self: PrivateTraining, request: PrivateRequest, room: int, number: SumNumber | None = None
    ) -> PrivateUpdate:
        made = usual(self, request, room, number)
        released.extend([made] if self._site == "3" else [])
        return made

    monkeypatch.setattr(PrivateTraining, "update", noted)
    for node in (1, 2):
        world.places[node].before = fail(SecaggRequest, times=3, step="reveal")
    assert world.rounds.train(1).attempts == 2
    first, second = released
    assert not np.array_equal(first.vector, second.vector)


def test_a_private_round_is_repeated_as_another_release_within_the_spare(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = private(World(5, *PRIVATE, "privacy.spare_steps=1"))
    lose_while_unmasking(world, 4, 5)
    released: dict[str, list[PrivateUpdate]] = {}
    usual = PrivateTraining.update

    def noted(
        self: PrivateTraining, request: PrivateRequest, room: int, number: SumNumber | None = None
    ) -> PrivateUpdate:
        made = usual(self, request, room, number)
        released.setdefault(self._site, []).append(made)
        return made

    monkeypatch.setattr(PrivateTraining, "update", noted)
    done = world.rounds.train(1)
    assert (sorted(done.participants), done.attempts) == ([1, 2, 3], 2)
    for site in ("2", "3"):
        first, second = released[site]
        assert not np.array_equal(first.vector, second.vector)
    assert "charged anew: 1 of the plan's spare" in caplog.text


@pytest.mark.parametrize(("honest", "allowed"), [(3, True), (4, False), (255, False)])
def test_a_run_that_counts_on_more_honest_noise_than_there_is_gets_none(honest: int, allowed: bool) -> None:
    """Of a cohort of 6 with 3 feared colluders three shares are counted on; who claims more would have each smaller."""
    world = World(6, "privacy=distributed", "privacy.population=400", "server.min_cohort=6",
                  terms=Terms(min_cohort=6, colluders=3))  # fmt: skip
    private(world)
    plan = world.rounds.plan
    assert plan is not None and plan.honest == 5
    request = replace(plan.request("7", 1, world.rounds.model), honest=honest)
    total = world.rounds.aggregation.collect(request, sorted(world.apps), 0)
    if not allowed:
        assert total.refused == dict.fromkeys(range(1, 7), "policy")
        return
    assert total.integers is not None


def test_two_runs_without_reproducible_differ_by_no_update_exactly() -> None:
    """Under "record", six and then five: what is left is near the sixth's update, and no longer it."""
    differences = []
    for reproducible in (True, False):
        world = World(6)
        for place in world.places.values():
            place.trainer._loaded.reproducible = reproducible
        model, sums = world.rounds.model, []
        for run, nodes in (("7a", range(1, 7)), ("7b", range(1, 6))):
            aggregation = SecureAggregation(
                world.grid, world.authority.server("agency.test"), world.config.secagg, run=run, min_cohort=3,
                deadline_s=60.0, max_size=TASK.parameters, config_digest=bytes(32),
            )  # fmt: skip
            request = TrainRequest(
                run, 1, TASK.name, 0, 2, 16, 0.1, 0.0, model, TASK.transform.public_scale, digest=TASK.digest
            )
            total = aggregation.collect(request, list(nodes), TASK.evaluation_size)
            assert total.mean is not None
            sums.append(total.mean.astype(np.float64) * total.count)
        workload = world.places[6].trainer._loaded.workloads[TASK.digest]
        sixth, _ = workload.train(request)  # type: ignore[attr-defined]
        count = workload.count
        differences.append(np.linalg.norm((sums[0] - sums[1]) / count - sixth) / np.linalg.norm(sixth))
    assert differences[0] < 1e-3 < 0.02 < differences[1]


def test_without_spare_a_private_round_that_never_opened_ends_the_run() -> None:
    world = private(World(5, *PRIVATE, "privacy.spare_steps=0"))
    lose_while_unmasking(world, 4, 5)
    with pytest.raises(CohortError, match=r"hospital-5 gone; to repeat it is another release, and the 0 repeats"):
        world.rounds.train(1)


def test_too_few_uploads_reveal_nothing_and_the_attempt_is_repeated() -> None:
    world = World(4)
    world.rounds.profile()
    asked: list[Request] = []
    for node in (1, 2):
        world.places[node].before = fail(TrainRequest)
    world.places[4].before = asked.append
    done = world.rounds.train(1)
    assert done.attempts == 2 and len(done.participants) == 4
    kinds = [r.step if isinstance(r, SecaggRequest) else "train" for r in asked]
    assert kinds == ["train", "train", "reveal"]
