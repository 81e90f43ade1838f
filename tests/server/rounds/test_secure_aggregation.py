"""Secure aggregation through the round loop: real trainers and keys, an in-memory Grid, and institutions that fail."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.server.rounds.secure_world import (
    PRIVATE,
    TASK,
    World,
    fail,
    private,
    trained,
)

from sovfed.federation.messages import (
    MaskedReply,
    PrivateReply,
    Reply,
    Request,
    SecaggReply,
    TrainRequest,
)
from sovfed.server.rounds import secure_aggregation


def test_secure_and_plain_runs_agree_to_the_ring_s_resolution() -> None:
    secure, plain = trained(World(5)), trained(World(5, "secagg=none"))
    np.testing.assert_allclose(secure.rounds.scale, plain.rounds.scale, rtol=1e-12)
    clip = secure.config.secagg.clip
    np.testing.assert_allclose(secure.rounds.model, plain.rounds.model, atol=1e-6 * clip)
    ours, theirs = secure.rounds.train(3), plain.rounds.train(3)
    assert ours.count == theirs.count
    assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-5)
    sums = [one.rounds.evaluate(3).sums for one in (secure, plain)]
    assert sums[0] is not None and sums[1] is not None
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-4, atol=1e-3)


def test_sixteen_bits_halve_the_upload_and_still_learn() -> None:
    full, half = trained(World(5, "secagg.clip=1")), trained(World(5, "secagg=compact"))
    sizes = [
        next(r for r in w.places[1].replies if isinstance(r, MaskedReply) and r.payload.size) for w in (full, half)
    ]
    assert sizes[0].payload.nbytes == 8 * -(-TASK.parameters // 2)
    assert sizes[1].payload.nbytes == 8 * -(-TASK.parameters // 4)
    np.testing.assert_allclose(half.rounds.model, full.rounds.model, atol=0.5)
    assert np.abs(half.rounds.model - full.rounds.model).max() > 0  # 16 bits are coarser


def test_nothing_but_masked_words_and_shares_leaves_an_institution() -> None:
    world = trained(World(4))
    world.rounds.evaluate(2)
    left = [reply for place in world.places.values() for reply in place.replies]
    assert {type(reply) for reply in left} == {MaskedReply, SecaggReply}
    payload = np.concatenate([r.payload for r in left if isinstance(r, MaskedReply)]).view(np.uint8)
    assert abs(payload.mean() - 127.5) < 5 * 73.9 / np.sqrt(payload.size)  # uniform bytes: mean 127.5, deviation 73.9


@pytest.mark.parametrize("crowd_s", [0.0, 60.0])  # added one by one, or all together
def test_a_payload_altered_on_its_way_is_refused_and_leaves_no_trace(
    crowd_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure_aggregation, "CROWD_S", crowd_s)
    world, plain = World(6), World(6, "secagg=none")
    for one in (world, plain):
        one.rounds.profile()
    answer = world.places[3].trainer.answer

    def altered(request: Request) -> Reply:
        reply = answer(request)
        if isinstance(reply, MaskedReply):
            reply = dataclasses.replace(reply, payload=reply.payload ^ np.uint64(1))
        return reply

    world.places[3].trainer.answer = altered  # type: ignore[method-assign]
    plain.places[3].before = fail(TrainRequest)
    done, expected = world.rounds.train(1), plain.rounds.train(1)
    assert done.refused == {3: "malformed"}
    assert sorted(done.participants) == sorted(expected.participants) == [1, 2, 4, 5, 6]
    np.testing.assert_allclose(world.rounds.model, plain.rounds.model, atol=1e-5)


def test_a_private_reply_tells_no_seconds_and_the_round_says_so() -> None:
    world = private(World(3, *PRIVATE))
    done = world.rounds.train(1)
    assert (done.seconds_compute, done.overhead_seconds, done.train_loss) == (None, None, None)
    assert done.seconds > 0
    replies = [reply for reply in world.places[1].replies if not isinstance(reply, SecaggReply)]
    assert [type(reply) for reply in replies] == [PrivateReply]


def test_an_institution_that_tells_its_seconds_in_a_private_round_is_refused() -> None:
    world = private(World(4, *PRIVATE))
    place = world.places[1]
    answer = place.trainer.answer

    def talkative(request: Request) -> Reply:
        reply = answer(request)
        return MaskedReply(0.5, reply.message, reply.payload) if isinstance(reply, PrivateReply) else reply

    place.trainer.answer = talkative  # type: ignore[method-assign]
    assert world.rounds.train(1).refused == {1: "malformed"}
