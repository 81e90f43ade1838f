"""Whole rounds: every dropout, sampled cohorts, metrics, and what the holders remember."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from tests.federation.secagg.test_ring import error_bound

from sovfed.federation.errors import CohortError, PolicyError, PrivacyError, ProtocolError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg.local import found, random_updates
from sovfed.federation.secagg.mask import hash_vector
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.session import Session
from sovfed.federation.secagg.terms import Terms, threshold

SIZE = 21
HERE, BEFORE, AFTER = range(3)  # when an institution is lost


def plain_mean(
    updates: dict[int, Vector], weights: dict[int, int], members: list[int]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    stacked = np.stack([updates[index] for index in members]).astype(np.float64)
    return np.average(stacked, axis=0, weights=[weights[index] for index in members])


@pytest.mark.parametrize("members", [3, 4, 5, 6])
def test_every_dropout_pattern_gives_the_sum_of_the_survivors_or_nothing(members: int) -> None:
    federation = found(members)
    updates, weights = random_updates(members, SIZE, seed=members), {index: 100 + 7 * index for index in range(members)}
    metrics = {index: (0.5 * index, -1.0) for index in range(members)}
    for number, fate in enumerate(product((HERE, BEFORE, AFTER), repeat=members), start=1):
        model = np.full(SIZE, number, np.float32)
        before = [index for index in range(members) if fate[index] == BEFORE]
        after = [index for index in range(members) if fate[index] == AFTER]
        survivors = [index for index in range(members) if index not in before]
        arguments = {"lost_before_upload": before, "lost_after_upload": after}
        if len(survivors) < 3:
            with pytest.raises(CohortError):
                federation.run(number, model, updates, weights, metrics, **arguments)
            assert all((federation.roster.offer.run, number) not in i.history.revealed for i in federation.institutions)
            continue
        aggregate = federation.run(number, model, updates, weights, metrics, **arguments)
        if members - len(before) - len(after) < threshold(members):
            assert aggregate is None
            continue
        assert aggregate is not None
        ring = federation.roster.ring(federation.open(number, model).begin)
        bound = error_bound(ring, len(survivors), aggregate.weight)
        assert np.abs(aggregate.mean - plain_mean(updates, weights, survivors)).max() <= bound
        assert aggregate.weight == sum(weights[index] for index in survivors)
        assert aggregate.metrics.tolist() == [0.5 * sum(survivors), -1.0 * len(survivors)]
        assert aggregate.lies == ()


@pytest.mark.parametrize("bits", [8, 12, 16, 21, 32])
def test_masked_sum_equals_plain_sum_over_many_segments(bits: int) -> None:
    federation, size = found(4, bits=bits), 700_001
    updates, weights = random_updates(4, size), {0: 1000, 1: 10, 2: 500, 3: 999}
    aggregate = federation.run(1, np.zeros(size, np.float32), updates, weights, lost_before_upload=[2])
    assert aggregate is not None
    ring = federation.roster.ring(federation.open(1, np.zeros(size, np.float32)).begin)
    bound = error_bound(ring, 3, aggregate.weight)
    assert np.abs(aggregate.mean - plain_mean(updates, weights, [0, 1, 3])).max() <= bound


def test_at_32_bits_the_mean_is_exact_to_a_millionth_of_the_clip() -> None:
    """With weights that use the run's W_max; the bound that the documentation states."""
    federation = found(6, clip=1.5)
    updates, weights = random_updates(6, 10_000), {index: 500 + 100 * index for index in range(6)}
    aggregate = federation.run(1, np.zeros(10_000, np.float32), updates, weights)
    assert aggregate is not None
    assert np.abs(aggregate.mean - plain_mean(updates, weights, list(range(6)))).max() <= 1e-6 * 1.5


def test_a_sampled_cohort_is_unmasked_by_the_whole_roster() -> None:
    federation = found(12)
    updates = {index: update for index, update in random_updates(12, SIZE).items() if index % 2}
    aggregate = federation.run(
        1, np.zeros(SIZE, np.float32), updates, dict.fromkeys(updates, 10), lost_after_upload=[1, 3, 5]
    )
    assert aggregate is not None
    assert aggregate.survivors == tuple(f"hospital-{index:03d}" for index in range(1, 12, 2))


def test_a_round_of_metrics_alone() -> None:
    federation = found(4)
    round_ = federation.open(1, np.zeros(0, np.float32), metrics=2, purpose=Purpose.PROFILE)
    for index, institution in enumerate(federation.institutions):
        permit = institution.begin(round_.begin_bytes, hash_vector(np.zeros(0, np.float32)), federation.now)
        upload = institution.mask(permit, np.zeros(0, np.float32), 0, [index, 0.5])
        round_.add(upload.message, upload.payload)
    for holder, ask in round_.ask().items():
        round_.answer(federation.institutions[holder].reveal(ask))
    aggregate = round_.solve()
    assert aggregate is not None and aggregate.metrics.tolist() == [6.0, 2.0] and aggregate.mean.size == 0


def test_repeats_and_late_messages_change_nothing() -> None:
    federation, model = found(4), np.zeros(SIZE, np.float32)
    updates = random_updates(4, SIZE)
    round_ = federation.open(1, model)
    uploads = [federation.upload(round_, index, model, updates[index], 10) for index in range(4)]
    for upload in uploads[:3]:
        round_.add(upload.message, upload.payload)
    with pytest.raises(ProtocolError, match="second"):
        round_.add(uploads[0].message, uploads[0].payload)
    asks = round_.ask()
    with pytest.raises(ProtocolError, match="too late"):
        round_.add(uploads[3].message, uploads[3].payload)
    for holder in range(3):
        first, again = (federation.institutions[holder].reveal(asks[holder]) for _ in range(2))
        round_.answer(first)
        round_.answer(again)
    assert round_.answers == 3
    aggregate = round_.solve()
    assert aggregate is not None
    assert np.abs(aggregate.mean - plain_mean(updates, dict.fromkeys(range(4), 10), [0, 1, 2])).max() < 1e-5


def test_an_abandoned_attempt_can_be_tried_again_without_the_lost() -> None:
    federation, model = found(5), np.zeros(SIZE, np.float32)
    updates = random_updates(5, SIZE)
    first = federation.open(1, model)
    for index in range(3):
        upload = federation.upload(first, index, model, updates[index], 10)
        first.add(upload.message, upload.payload)
    second = federation.open(1, model, attempt=2, cohort=[0, 1, 2, 4])
    for index in (0, 1, 2, 4):
        upload = federation.upload(second, index, model, updates[index], 10)
        second.add(upload.message, upload.payload)
    for holder, ask in second.ask().items():
        second.answer(federation.institutions[holder].reveal(ask))
    aggregate = second.solve()
    assert aggregate is not None and len(aggregate.survivors) == 4


def test_a_session_survives_storage(tmp_path: object) -> None:
    federation, model = found(4), np.zeros(SIZE, np.float32)
    for institution in federation.institutions:
        stored = institution.session.encode()
        institution.session = Session.decode(stored, institution.identity.verify, federation.now)
    aggregate = federation.run(1, model, random_updates(4, SIZE), dict.fromkeys(range(4), 10), lost_before_upload=[1])
    assert aggregate is not None


def test_a_round_needs_the_institutions_own_minimum() -> None:
    federation = found(6)
    federation.institutions[2].terms = Terms(min_cohort=5)
    round_ = federation.open(1, np.zeros(SIZE, np.float32), cohort=[0, 1, 2, 3])
    with pytest.raises(PolicyError, match=r"over 4 institutions.*terms: 5"):
        federation.upload(round_, 2, np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32), 10)


def test_rounds_do_not_go_back() -> None:
    federation, model = found(4), np.zeros(SIZE, np.float32)
    federation.upload(federation.open(5, model), 0, model, model, 10)
    with pytest.raises(PrivacyError, match="round 5 was masked already"):
        federation.upload(federation.open(4, model), 0, model, model, 10)


@pytest.mark.parametrize(
    ("members", "needed", "tolerated"),
    [(3, 3, 2), (4, 3, 1), (5, 4, 2), (8, 6, 3), (16, 11, 5), (32, 22, 11), (200, 134, 67)],
)
def test_threshold_and_colluders(members: int, needed: int, tolerated: int) -> None:
    from sovfed.federation.secagg.terms import colluders_tolerated

    assert threshold(members) == needed
    assert colluders_tolerated(members) == tolerated
    assert 2 * needed > members + tolerated >= 2 * needed - 1


def test_uploads_do_not_repeat_themselves() -> None:
    """The same update in the same round of two runs: payloads look unrelated, as does every sealed share."""
    model, update = np.zeros(SIZE, np.float32), np.ones(SIZE, np.float32)
    uploads = [f.upload(f.open(1, model), 0, model, update, 10) for f in (found(3), found(3))]
    assert not np.any(uploads[0].payload == uploads[1].payload)
    assert uploads[0].message[6:38] != uploads[1].message[6:38]


@pytest.mark.parametrize("bits", [16, 32])
def test_integers_are_summed_exactly_over_the_survivors(bits: int) -> None:
    federation, size = found(4, bits=bits), 1001
    limit = (1 << (bits - 3)) - 2
    generator = np.random.default_rng(3)
    vectors = [generator.integers(-limit, limit + 1, size).astype(np.int32) for _ in range(4)]
    vectors[0][:2], vectors[1][:2], vectors[2][:2] = (limit, -limit), (limit, -limit), (limit, -limit)
    model = np.zeros(size, np.float32)
    round_ = federation.open(1, model, purpose=Purpose.STEP)
    for index in (0, 1, 2):
        institution = federation.institutions[index]
        permit = institution.begin(round_.begin_bytes, hash_vector(model), federation.now)
        upload = institution.mask(permit, vectors[index], 1, ())
        round_.add(upload.message, upload.payload)
    for holder, ask in round_.ask().items():
        round_.answer(federation.institutions[holder].reveal(ask))
    aggregate = round_.solve()
    assert aggregate is not None and aggregate.integers is not None
    np.testing.assert_array_equal(aggregate.integers, np.sum(vectors[:3], axis=0, dtype=np.int64))


def test_an_integer_too_large_for_its_lane_is_cut_to_it() -> None:
    """Of 4 members a lane of 16 bits has 14 for each: ±(2^13 − 2)."""
    federation, model = found(4, bits=16), np.zeros(2, np.float32)
    round_ = federation.open(1, model, purpose=Purpose.STEP)
    for institution in federation.institutions:
        permit = institution.begin(round_.begin_bytes, hash_vector(model), federation.now)
        upload = institution.mask(permit, np.array([-(2**31), 2**13], np.int32), 1, ())
        round_.add(upload.message, upload.payload)
    for holder, ask in round_.ask().items():
        round_.answer(federation.institutions[holder].reveal(ask))
    aggregate = round_.solve()
    assert aggregate is not None and aggregate.integers is not None
    np.testing.assert_array_equal(aggregate.integers, [-4 * (2**13 - 2), 4 * (2**13 - 2)])
