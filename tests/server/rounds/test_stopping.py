"""Early stopping and the best model: rounds counted by hand, and the same after a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from sovfed.federation.config import Config
from sovfed.federation.metrics import gain
from sovfed.server.rounds.stopping import Stopping


def stopping(folder: Path, metric: str = "auc", **values: object) -> Stopping:
    return Stopping(dataclasses.replace(Config(), **values), partial(gain, metric), folder)  # type: ignore[arg-type]


def due_after(made: Stopping, values: Sequence[float | None]) -> int | None:
    """The round whose metric ends the run."""
    for number, value in enumerate(values):
        made.see(number, value)
        if made.due:
            return number
    return None


@pytest.mark.parametrize(
    ("metric", "values", "least", "expected"),
    [
        ("auc", [0.5, 0.7, 0.6, 0.7, 0.8], 0.0, 3),
        ("auc", [0.5, 0.6, 0.7, 0.8, 0.9], 0.0, None),
        ("auc", [0.5, 0.62, 0.65, 0.69, 0.9], 0.1, 3),
        ("loss", [1.0, 0.9, 0.95, 0.9, 0.5], 0.0, 3),
        ("loss", [1.0, 0.9, 0.8, 0.7, 0.6], 0.0, None),
        ("auc", [0.5, None, None, None, None], 0.0, None),
        ("auc", [0.5, float("nan"), float("nan")], 0.0, 2),
    ],
)
def test_a_run_ends_when_nothing_became_better_for_the_patience(
    tmp_path: Path, metric: str, values: list[float | None], least: float, expected: int | None
) -> None:
    assert due_after(stopping(tmp_path, metric, patience=2, min_delta=least), values) == expected


def test_rounds_count_and_not_evaluations_where_those_are_rare(tmp_path: Path) -> None:
    made = stopping(tmp_path, patience=4, evaluate_every=2)
    assert due_after(made, [0.5, None, 0.9, None, 0.8, None, 0.7, None]) == 6


def test_without_patience_a_run_never_ends_early(tmp_path: Path) -> None:
    assert due_after(stopping(tmp_path), [0.9] + [0.1] * 50) is None


def model(value: float) -> np.ndarray:
    return np.full(3, value, dtype=np.float32)


def test_the_best_model_is_kept_and_given_where_the_last_is_worse(tmp_path: Path) -> None:
    made = stopping(tmp_path, keep_best=True)
    for number, value in enumerate([0.5, 0.8, 0.7]):
        made.see(number, value, model(number))
    best = made.better(0.75)
    assert best is not None and (best.round, best.value) == (1, 0.8)
    np.testing.assert_array_equal(best.model, model(1))
    assert made.better(0.8) is None and made.better(0.9) is None
    assert made.better(float("nan")) is not None


def test_a_restart_goes_on_as_if_there_had_been_none(tmp_path: Path) -> None:
    before = stopping(tmp_path, keep_best=True, patience=2)
    for number, value in enumerate([0.5, 0.8, 0.7]):
        before.see(number, value, model(number))
    after = stopping(tmp_path, keep_best=True, patience=2)
    after.replay([(0, 0.5), (1, 0.8), (2, 0.7)])
    ends = [after.due]
    after.see(3, 0.75, model(3))
    ends.append(after.due)
    best = after.better(0.75)
    assert ends == [False, True] and best is not None and best.round == after.round == 1


def test_a_new_run_in_an_old_folder_takes_no_earlier_model(tmp_path: Path) -> None:
    stopping(tmp_path, keep_best=True).see(0, 0.9, model(0))
    made = stopping(tmp_path, keep_best=True)
    made.replay([])
    assert made.better(0.1) is None


def test_no_model_is_kept_unless_asked_for(tmp_path: Path) -> None:
    made = stopping(tmp_path, patience=3)
    made.see(0, 0.9, model(0))
    assert made.better(0.1) is None and list(tmp_path.iterdir()) == []
