"""Client sampling: sizes by hand, the same draw for the same seed and round, and who is never drawn out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sovfed.federation.messages import EvaluateRequest, ProfileRequest, SumRequest, TrainRequest
from sovfed.server.rounds.aggregation import Total
from sovfed.server.rounds.sampling import Sampled

NODES = list(range(100, 120))


class Recording:
    """An aggregation that notes whom it was asked for, and refuses for some."""

    def __init__(self, refusing: Sequence[int] = (), missing: str = "") -> None:
        self.asked: list[list[int]] = []
        self._refusing, self._missing = set(refusing), missing

    def collect(self, request: SumRequest, nodes: Sequence[int], width: int) -> Total:
        self.asked.append(list(nodes))
        total = Total(refused={node: "failed" for node in nodes if node in self._refusing})
        total.missing = self._missing
        return total

    def describe(self) -> dict[str, Any]:
        return {"secure_aggregation": True}


def train(number: int) -> TrainRequest:
    return TrainRequest("r", number, "heart", 0, 1, 8, 0.1, 0.0, np.zeros(1, np.float32), np.zeros(0))


@pytest.mark.parametrize(
    ("share", "least", "size"), [(0.5, 3, 10), (0.26, 3, 6), (0.01, 3, 3), (0.5, 15, 15), (1.0, 3, 20)]
)
def test_a_sample_has_the_share_and_at_least_the_minimum_cohort(share: float, least: int, size: int) -> None:
    chosen = Sampled(Recording(), share, least, 0).draw(1, NODES)
    assert len(chosen) == size and chosen == sorted(set(chosen)) and set(chosen) <= set(NODES)


def test_rounds_draw_anew_and_a_repeated_run_draws_the_same() -> None:
    one, two = (Sampled(Recording(), 0.25, 3, 7) for _ in range(2))
    draws = [one.draw(number, NODES) for number in range(1, 401)]
    assert draws == [two.draw(number, NODES) for number in range(1, 401)]
    taken = Counter(node for draw in draws for node in draw)
    assert all(60 <= taken[node] <= 145 for node in NODES)  # of 100 expected, 8.7 standard deviation


def test_profile_and_evaluation_are_of_all() -> None:
    inner = Recording()
    sampled = Sampled(inner, 0.25, 3, 0)
    sampled.collect(ProfileRequest("r", "heart"), NODES, 1)
    sampled.collect(EvaluateRequest("r", 1, "heart", np.zeros(1, np.float32), np.zeros(0)), NODES, 1)
    sampled.collect(train(1), NODES, 1)
    assert [len(asked) for asked in inner.asked] == [20, 20, 5]
    assert sampled.describe() == {"secure_aggregation": True, "sample": 0.25}


def test_no_sum_is_of_more_than_the_most_whatever_the_share() -> None:
    inner = Recording()
    sampled = Sampled(inner, 1.0, 3, 0, most=8)
    for request in (ProfileRequest("r", "heart"), train(1), train(2)):
        sampled.collect(request, NODES, 1)
    sampled.collect(EvaluateRequest("r", 2, "heart", np.zeros(1, np.float32), np.zeros(0)), NODES, 1)
    assert [len(asked) for asked in inner.asked] == [8, 8, 8, 8]
    assert inner.asked[1] != inner.asked[2] and inner.asked[0] == inner.asked[3]
    sampled.collect(train(3), NODES[:8], 1)
    assert inner.asked[-1] == NODES[:8]
    assert sampled.describe() == {"secure_aggregation": True}


def test_who_refused_is_not_drawn_again_in_the_round_while_others_are_there() -> None:
    inner = Recording(refusing=NODES[:12])
    sampled = Sampled(inner, 0.25, 3, 0)
    for _ in range(4):
        sampled.collect(train(1), NODES, 1)
    assert not set(inner.asked[-1]) & set(inner.asked[0]) & set(NODES[:12])
    sampled.collect(train(2), NODES, 1)
    assert len(inner.asked[-1]) == 5


def test_a_sum_whose_shares_were_asked_for_is_repeated_over_the_same() -> None:
    inner = Recording(refusing=NODES, missing="2 of 5 shares")
    sampled = Sampled(inner, 0.25, 3, 0)
    sampled.collect(train(1), NODES, 1)
    sampled.collect(train(1), NODES, 1)
    assert inner.asked[0] == inner.asked[1]
