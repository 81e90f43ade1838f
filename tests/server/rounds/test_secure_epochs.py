"""Who comes later, who is left, and who is of another authority: the epochs of a run."""

from __future__ import annotations

import pytest
from tests.server.rounds.secure_world import (
    TASK,
    World,
)

from sovfed.federation.errors import CohortError, DeclinedError
from sovfed.federation.messages import (
    Refusal,
)
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.local import Authority
from sovfed.server.rounds.secure_aggregation import SecureAggregation


def test_an_institution_that_comes_later_joins_a_new_epoch() -> None:
    world = World(4)
    world.rounds.profile()
    world.rounds.train(1)
    world.add(5, MemoryStore())
    assert len(world.rounds.train(2).participants) == 5


def test_when_too_few_holders_are_left_the_others_agree_anew() -> None:
    world = World(6)
    world.rounds.profile()
    world.rounds.train(1)
    for node in (1, 2):  # 4 of 6 are left, t = 5
        world.remove(node)
    assert sorted(world.rounds.train(2).participants) == [3, 4, 5, 6]


def test_an_institution_of_another_authority_is_left_out() -> None:
    world = World(4)
    stranger = world.add(5, MemoryStore(), authority=Authority())
    world.rounds.profile()
    done = world.rounds.train(1)
    assert sorted(done.participants) == [1, 2, 3, 4]
    assert all(isinstance(reply, Refusal) and reply.reason == "identity" for reply in stranger.replies)


def test_a_server_of_another_authority_gets_nothing() -> None:
    world = World(4)
    world.rounds.aggregation = SecureAggregation(
        world.grid, Authority().server("agency.test"), world.config.secagg, run="8", min_cohort=3, deadline_s=60.0,
        max_size=TASK.parameters, config_digest=bytes(32),
    )  # fmt: skip
    with pytest.raises(CohortError, match="identity"):
        world.rounds.profile()
    assert {type(reply) for place in world.places.values() for reply in place.replies} == {Refusal}


@pytest.mark.parametrize(("earlier", "over"), [((), True), (("hospital-9",), False)])
def test_a_run_whose_rosters_every_policy_forbids_is_over(earlier: tuple[str, ...], over: bool) -> None:
    """At a setup as at a round, unless one is awaited with whom they may allow it: taken up again, it is in vain."""
    world = World(4)
    for place in world.places.values():
        place.answer = lambda request: Refusal("policy")  # type: ignore[method-assign]
    world.rounds.earlier = frozenset(earlier)
    with pytest.raises(CohortError, match=r"policy \(1, 2, 3, 4\): The institution's policy forbids") as raised:
        world.rounds.profile()
    assert isinstance(raised.value, DeclinedError) == over
