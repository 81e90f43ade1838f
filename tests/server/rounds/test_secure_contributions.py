"""What an institution adds to a secure sum: by its own terms, its records, the clip and the ring."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from tests.server.rounds.secure_world import (
    RECORDING,
    TASK,
    World,
    trained,
)

from sovfed.clients.home.policy import Policy
from sovfed.clients.trainer.masking import told_seconds
from sovfed.clients.trainer.rules import Rules
from sovfed.federation.errors import CohortError, TrainingError
from sovfed.federation.messages import (
    MaskedReply,
    TrainReply,
)
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.secagg.terms import Terms
from sovfed.federation.tasks import initial_vector

HOPELESS = (
    "strategy=fedprox", "task.learning_rate=1000", "strategy.proximal_mu=1000000", "task.local_epochs=20",
)  # fmt: skip


@pytest.mark.parametrize(
    ("terms", "overrides"),
    [
        pytest.param(Terms(), (), id="minimum cohort of 5"),
        pytest.param(Terms(min_cohort=3, colluders=0, bits=(32,)), ("secagg=compact",), id="ring"),
        pytest.param(Terms(min_cohort=3, colluders=0, max_clip=1.0), (), id="clip"),
        pytest.param(Terms(min_cohort=3, colluders=0, max_weight=100), (), id="maximum weight"),
        pytest.param(replace(RECORDING, members=("hospital-1", "hospital-2", "hospital-3")), (), id="stranger"),
        pytest.param(Terms(min_cohort=3, colluders=0, expected=("hospital-9",)), (), id="absent friend"),
    ],
)
def test_what_an_institution_s_own_terms_forbid_does_not_happen(terms: Terms, overrides: tuple[str, ...]) -> None:
    world = World(4, *overrides, terms=terms)
    with pytest.raises(CohortError, match=r"(policy|bound) \("):
        world.rounds.profile()


def test_more_records_than_the_maximum_weight_count_as_so_many_and_are_no_refusal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(4, "secagg.max_weight=40", terms=dataclasses.replace(RECORDING, least_max_weight=40))
    world.rounds.profile()
    done = world.rounds.train(1)
    assert (done.refused, done.count, done.spoilt) == ({}, 40 + 40 + 40 + 32, 0)
    assert "count as secagg.max_weight 40" in caplog.text


def test_more_records_than_the_maximum_weight_count_as_so_many_in_every_summand() -> None:
    world, plain = (
        World(4, "secagg.max_weight=40", terms=dataclasses.replace(RECORDING, least_max_weight=40)),
        World(4, "secagg=none"),
    )
    world.rounds.profile()
    plain.rounds.profile()
    done = world.rounds.train(1)
    plain.rounds.train(1)
    replies = [one for place in plain.places.values() for one in place.replies if isinstance(one, TrainReply)]
    weights = [min(one.count, 40) for one in replies]
    assert max(one.count for one in replies) > 100
    expected = sum(w * one.train_loss for w, one in zip(weights, replies, strict=True)) / sum(weights)
    assert done.train_loss == pytest.approx(expected, rel=1e-5)


def test_seconds_of_computing_are_told_as_powers_of_two() -> None:
    told = [reply.seconds for reply in trained(World(3)).places[1].replies if isinstance(reply, MaskedReply)]
    assert told and all(np.log2(seconds) % 1 == 0 and seconds >= 2**-6 for seconds in told)
    assert [told_seconds(s) for s in (0.0, -1.0, 0.015, 0.016, 1.0, 1.01, 1e9)] == [
        2**-6, 2**-6, 2**-6, 2**-5, 1.0, 2.0, 2.0**17,
    ]  # fmt: skip


def test_a_maximum_weight_that_would_tell_record_counts_is_refused_when_joining() -> None:
    world = World(4, "secagg.max_weight=999")
    with pytest.raises(CohortError, match=r"(policy|bound) \("):
        world.rounds.profile()


def test_what_overflows_at_one_institution_is_a_count_in_the_sum_and_no_refusal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, calm = World(4), World(4)
    broken = world.places[2].trainer
    world.rounds.profile()
    calm.rounds.profile()
    usual = calm.rounds.train(1)
    monkeypatch.setattr(broken._loaded.workload(TASK), "_loss", lambda outputs, labels: outputs[:, 0] * np.inf)
    done = world.rounds.train(1)
    assert (done.refused, done.spoilt, usual.spoilt) == ({}, 1, 0)
    assert done.count == usual.count  # its weight stays, so that nobody's records can be counted by spoiling
    assert done.evaluation is not None and usual.evaluation is not None
    assert done.evaluation[0] == usual.evaluation[0]
    assert "1 of 4 contributions were spoilt" in caplog.text


def test_a_run_whose_every_contribution_is_spoilt_ends_and_says_why() -> None:
    world = World(4, *HOPELESS)
    world.rounds.profile()
    with pytest.raises(TrainingError, match=r"4 of 4 contributions were spoilt.*learning rate"):
        world.rounds.train(1)


def test_work_that_fails_on_the_records_in_any_way_is_nothing_in_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(4)
    world.rounds.profile()
    workload = world.places[1].trainer._loaded.workload(TASK)

    def fail(*_: object) -> None:
        raise MemoryError("patient Ada Lovelace")

    monkeypatch.setattr(workload, "learn", fail)
    monkeypatch.setattr(workload, "measure", fail)
    done = world.rounds.train(1)
    assert (done.refused, done.spoilt) == ({}, 1)
    final = world.rounds.evaluate(1)
    assert (final.refused, final.spoilt) == ({}, 1)


def test_an_agency_learns_that_a_run_must_be_private() -> None:
    world = World(4)
    for place in world.places.values():
        place.trainer._rules = Rules(Policy(allowed_tasks=("breast_cancer",)).check)
    with pytest.raises(CohortError, match="answers runs with differential privacy only"):
        world.rounds.profile()


def test_updates_beyond_the_clip_are_shrunk_as_a_whole_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """Seen: cut value by value, one sum under a small clip gave the sign of every value of every institution."""
    world, plain = World(4, "secagg.clip=0.001", terms=replace(RECORDING, min_clip=0.001)), World(4, "secagg=none")
    for one in (world, plain):
        one.rounds.profile()
        one.rounds.train(1)
    assert "were beyond secagg.clip" in caplog.text
    replies = [one for place in plain.places.values() for one in place.replies if isinstance(one, TrainReply)]
    total = sum(one.count for one in replies)
    expected = sum(one.count / total * 0.001 * one.update / np.abs(one.update).max() for one in replies)
    np.testing.assert_allclose(world.rounds.model - initial_vector(TASK, 0), expected, atol=2e-7)


def test_what_goes_for_every_round_is_told_ever_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    """Seen: of a language model's 1,200 rounds nearly each said the same two lines."""
    world = World(4, "secagg.clip=0.001", terms=replace(RECORDING, min_clip=0.001))
    world.rounds.profile()
    for number in range(1, 6):
        world.rounds.train(number)
    told = [record.getMessage() for record in caplog.records if "beyond secagg.clip" in record.getMessage()]
    assert [line.split(":")[0] for line in told] == ["round 1", "round 2", "round 4"]
    assert "strategy.gradient_scale" in told[0] and told[2].endswith("(4 times so far)")


def test_in_a_coarse_ring_what_rounding_takes_goes_with_the_next_update() -> None:
    """Of updates that are far below a step little would arrive; kept and added up, they arrive a step at a time."""
    training = ("task.learning_rate=0.1", "task.batch_size=1000", "secagg.max_error=1000")
    coarse = World(4, "secagg.bits=8", "secagg.clip=1", "secagg.max_weight=1000", *training)
    plain = World(4, "secagg=none", *training)
    for world in (coarse, plain):
        world.rounds.profile()
        for number in range(1, 21):
            world.rounds.train(number)
    moved, gap = (np.abs(plain.rounds.model - other).max() for other in (initial_vector(TASK, 0), coarse.rounds.model))
    replies = [place.replies for place in plain.places.values()]
    total = sum(next(reply.count for reply in each if isinstance(reply, TrainReply)) for each in replies)
    step = Ring(8, 1.0, 1000, 4).step(total)
    updates = [reply.update for each in replies for reply in each if isinstance(reply, TrainReply)]
    assert np.median(np.abs(updates)) < step / 2  # of what one alone can move the mean by
    assert gap < 4 * step / 2 < moved  # each institution still owes half of a step at most


def test_in_a_coarse_ring_institutions_with_few_records_are_not_silenced() -> None:
    """Seen: with a hundredth of secagg.max_weight all of an update was rounded to 0, told as no rounding at all."""
    ring = ("secagg.bits=8", "secagg.clip=1", "secagg.max_weight=40000", "secagg.max_error=1000")
    world = World(4, *ring, "task.learning_rate=1")
    world.rounds.profile()
    for number in range(1, 16):
        world.rounds.train(number)
    assert np.abs(world.rounds.model - initial_vector(TASK, 0)).max() > 0
