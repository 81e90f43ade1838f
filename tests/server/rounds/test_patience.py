"""Whom a round waits for, and who is asked again when: by a clock that the test turns."""

from __future__ import annotations

import math

from sovfed.server.rounds.patience import REST_S, Patience, Standing


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_nobody_is_given_up_before_enough_have_answered() -> None:
    clock = Clock()
    patience = Patience(2, grace_s=10.0, clock=clock)
    patience.answered()
    clock.now += 10_000
    assert patience.remaining_s() == math.inf


def test_the_grace_runs_from_the_last_answer_and_grows_with_what_the_slowest_took() -> None:
    clock = Clock()
    patience = Patience(2, grace_s=10.0, factor=2.0, clock=clock)
    for _ in range(2):
        clock.now += 1.0
        patience.answered()
    assert patience.remaining_s() == 10.0
    clock.now += 98.0
    patience.answered()  # of a slow one, after 100 s
    assert patience.remaining_s() == 200.0
    clock.now += 201.0
    assert patience.remaining_s() < 0


def test_who_was_late_is_left_out_until_it_is_heard_of() -> None:
    clock, heard = Clock(), {7: -math.inf}
    standing = Standing(lambda node: heard.get(node, -math.inf), clock)
    assert standing.ready([5, 6, 7], 2) == [5, 6, 7]
    standing.missed(7)
    assert standing.ready([5, 6, 7], 2) == [5, 6]
    assert standing.resting([5, 6, 7]) == [7]
    heard[7] = clock.now + 1
    assert standing.ready([5, 6, 7], 2) == [5, 6, 7]


def test_who_is_late_again_and_again_rests_for_longer_whatever_it_says() -> None:
    clock = Clock()
    standing = Standing(lambda _node: clock.now, clock)
    pauses = []
    for _ in range(9):
        standing.missed(7)
        began = clock.now
        clock.now += 1.0
        while standing.resting([7]):
            clock.now += 1.0
        pauses.append(clock.now - began)
    assert pauses[0] == 1.0  # it was heard of at once
    assert pauses[1:4] == [2 * REST_S[0], 4 * REST_S[0], 8 * REST_S[0]]
    assert pauses[-1] == REST_S[1]
    standing.answered(7)
    standing.missed(7)
    clock.now += 1.0
    assert not standing.resting([7])


def test_too_few_that_are_awake_and_all_are_asked() -> None:
    standing = Standing(clock=Clock())
    standing.missed(6)
    standing.missed(7)
    assert standing.ready([5, 6, 7], 2) == [5, 6, 7]
    assert standing.ready([5, 6, 7, 8], 2) == [5, 8]
