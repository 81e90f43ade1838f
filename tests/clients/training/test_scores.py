"""An institution's sums of scores: what one person adds, however many records they have and whoever else is there."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.clients.orders.house import TASK

from sovfed.clients.data import Indices, Records, load_records
from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.scores import score_totals
from sovfed.federation.config import DataConfig
from sovfed.federation.messages import Sums, Vector
from sovfed.federation.statistics.scores import Scores
from sovfed.federation.tasks import initial_vector, summarise

SCORES = Scores.of(TASK.metrics)
SCALE = TASK.transform.public_scale
MODEL = initial_vector(TASK, 3)


def loaded() -> Records:
    records = load_records(TASK, DataConfig(site="2"))
    assert isinstance(records, Records)
    return records


def totals(records: Records) -> tuple[Sums, Sums, int]:
    training = LocalTraining(TASK, records, site="2", device="cpu")
    return score_totals(training, records, MODEL, SCALE, SCORES)


def test_sums_are_those_of_the_usual_evaluation_where_each_record_is_a_person() -> None:
    records = loaded()
    total, sums, _ = totals(records)
    usual = LocalTraining(TASK, records, site="2", device="cpu").evaluate(MODEL, SCALE)
    assert sums == pytest.approx(usual)
    assert total[0] == len(records.test)
    expected = summarise(TASK, usual)
    assert 0.5 + total[1] / total[0] == pytest.approx(expected["accuracy"])
    assert 4.0 * (0.5 + total[2] / total[0]) == pytest.approx(expected["loss"], abs=1e-6)  # none is cut at 4


def test_a_person_with_many_records_counts_as_one() -> None:
    records = loaded()
    persons = records.persons // 1  # a copy
    persons[records.test] = np.arange(len(records.test)) % 5
    total, _, _ = totals(dataclasses.replace(records, persons=persons))
    assert total[0] == pytest.approx(5, abs=1e-6)
    assert np.abs(total[1:]).max() <= 2.5


def test_taking_a_person_away_moves_the_sums_by_at_most_the_clip_and_nobody_else_s_part_at_all() -> None:
    records = loaded()
    persons = records.persons // 1
    persons[records.test] = np.arange(len(records.test)) % 11
    whole, _, _ = totals(dataclasses.replace(records, persons=persons))
    parts = []
    for person in range(11):
        alone = records.test[persons[records.test] == person]
        parts.append(totals(dataclasses.replace(records, persons=persons, test=alone))[0])
        without = records.test[persons[records.test] != person]
        moved = whole - totals(dataclasses.replace(records, persons=persons, test=without))[0]
        assert np.linalg.norm(moved) <= SCORES.clip
        assert np.array_equal(moved, parts[-1])
    assert np.array_equal(sum(parts), whole)


class Unreadable(LocalTraining):
    """One whose record `bad` cannot be decoded."""

    bad = 0

    def outputs(self, model: Vector, scale: Sums, rows: Indices) -> Any:
        if self.bad in rows:
            raise OSError("this image is cut short")
        return super().outputs(model, scale, rows)


def test_a_record_that_cannot_be_read_takes_nobody_else_out_of_the_sum() -> None:
    """Else its person would move the sum by everybody's part, which the noise is not for."""
    records = loaded()
    training = Unreadable(TASK, records, site="2", device="cpu")
    training.bad = int(records.test[3])
    total, _, failed = score_totals(training, records, MODEL, SCALE, SCORES)
    others = np.delete(records.test, 3)
    assert np.array_equal(total, totals(dataclasses.replace(records, test=others))[0])
    assert (failed, len(records.test)) == (1, 29)
