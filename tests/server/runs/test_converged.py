"""Whether the loss still fell when the rounds were over, on curves of which that is known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from sovfed.server.runs.converged import risen, still_falling


def rounds(training: list[float], held_out: list[float] | None = None) -> list[dict[str, Any]]:
    """Lines as a run's folder has them."""
    told = [{}] * len(training) if held_out is None else [{"loss": value} for value in held_out]
    return [
        {"round": number, "train_loss": loss, "metrics": metrics}
        for number, (loss, metrics) in enumerate(zip(training, told, strict=True), 1)
    ]


def falling(count: int, per_round: float) -> list[float]:
    return [math.exp(-per_round * number) for number in range(count)]


def test_a_loss_that_falls_by_a_tenth_a_round_is_told_with_what_to_try() -> None:
    """Means of e⁻⁰·⁴, e⁻⁰·⁵, e⁻⁰·⁶ and of e⁻⁰·⁷, e⁻⁰·⁸, e⁻⁰·⁹, by hand: 0.6086 and 0.4508."""
    told = still_falling(rounds(falling(10, 0.1)), {})
    assert "the loss (training) still fell at the end, from 0.6086 to 0.4508 (means of 3 rounds)" in told
    assert "rounds=20" in told


@pytest.mark.parametrize("count", [6, 30, 100])
def test_a_loss_at_rest_is_not_told_whatever_its_noise(count: int) -> None:
    for seed in range(20):
        draw = random.Random(seed)
        assert still_falling(rounds([0.5 + draw.gauss(0, 0.002) for _ in range(count)]), {}) == ""
    assert still_falling(rounds([0.5] * count), {}) == ""
    assert still_falling(rounds([0.0] * count), {}) == ""
    assert still_falling(rounds([0.1 + 0.01 * number for number in range(count)]), {}) == ""


def test_the_held_out_loss_decides_where_it_is_told() -> None:
    overfitted = rounds(falling(20, 0.1), [0.5] * 20)
    assert still_falling(overfitted, {}) == ""
    assert "the loss (held out)" in still_falling(rounds([0.5] * 20, falling(20, 0.1)), {})


def test_few_rounds_and_those_that_tell_no_loss_say_nothing() -> None:
    assert still_falling(rounds(falling(5, 0.5)), {}) == ""
    private: list[dict[str, Any]] = [{"round": number, "train_loss": None, "metrics": {}} for number in range(1, 50)]
    assert still_falling(private, {}) == "" == still_falling([], {})


def test_the_fall_that_a_cooldown_brings_is_none_of_training() -> None:
    curve = rounds([0.5] * 40 + [0.5 - 0.02 * number for number in range(10)])
    assert still_falling(curve, {"schedule": "wsd", "cooldown": 0.2}) == ""
    assert "still fell" in still_falling(curve, {"schedule": "constant", "cooldown": 0.2})


def test_a_loss_that_rose_again_is_told_with_the_round_and_what_to_try() -> None:
    """0.5 + |r − 10| / 100 of model r: means of four are 0.51 at the lowest, 8 to 11 or 9 to 12, and last 0.575."""
    curve = rounds([0.1] * 20, [0.5 + abs(number - 10) / 100 for number in range(20)])
    told = risen(curve)
    assert "rose from 0.51 about round 10 to 0.575 at the end (means of 4 rounds); try rounds=10" in told


@pytest.mark.parametrize("count", [6, 30, 100])
def test_a_held_out_loss_that_is_at_rest_or_falls_or_is_not_told_has_not_risen(count: int) -> None:
    for seed in range(20):
        draw = random.Random(seed)
        assert risen(rounds([0.5] * count, [0.5 + draw.gauss(0, 0.002) for _ in range(count)])) == ""
    assert risen(rounds([0.5] * count, falling(count, 0.1))) == ""
    assert risen(rounds(falling(count, 0.1))) == "" == risen([])
