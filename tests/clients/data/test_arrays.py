"""Records of arrays and tensors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sovfed.clients.data.arrays import records
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import number
from sovfed.federation.tasks.simple import classifier, multilabel

TASK = classifier("arrays", lambda: nn.Linear(2, 2), (2,), classes=2)
ALONE = classifier("arrays", lambda: nn.Linear(2, 2), (2,), classes=2, one_row_a_person=True)
X = np.random.default_rng(0).normal(size=(200, 2))
Y = (X[:, 0] > 0).astype(np.int64)


def test_a_test_set_is_what_is_held_out() -> None:
    result = records(TASK, (X[:3], Y[:3]), (X[3:5], Y[3:5]))
    assert result.train.tolist() == [0, 1, 2]
    assert result.test.tolist() == [3, 4]
    assert result.columns["features"].dtype == np.float32


def test_tensors_are_arrays() -> None:
    of_tensors = records(TASK, (torch.from_numpy(X), torch.from_numpy(Y)))
    assert of_tensors.columns["features"].tolist() == records(TASK, (X, Y)).columns["features"].tolist()


def test_about_three_of_ten_are_held_out_by_content_whatever_else_there_is() -> None:
    everybody, fewer = records(TASK, (X, Y)), records(TASK, (X[1:], Y[1:]))
    assert 40 <= len(everybody.test) <= 80
    assert [row - 1 for row in everybody.test if row] == fewer.test.tolist()


def test_a_person_stays_on_one_side() -> None:
    result = records(TASK, (X, Y), persons=[f"p{row % 50}" for row in range(200)])
    assert len(np.unique(result.persons)) == 50
    assert not set(result.persons[result.train]) & set(result.persons[result.test])
    assert result.several_records
    assert result.not_private == ""


def test_a_person_whose_name_is_written_in_several_ways_is_one() -> None:
    names = ["Zoë", "Zoe\u0308", " Zoë", "A  B", "A B"]
    assert records(TASK, (X[:5], Y[:5]), persons=names).persons.tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("nobody", [None, float("nan"), "", " ", "NULL"])
def test_records_of_nobody_are_refused_and_are_not_one_person(nobody: object) -> None:
    with pytest.raises(DataError, match="2 records name no person"):
        records(TASK, (X[:4], Y[:4]), persons=np.array(["a", nobody, "b", nobody], object))


def test_without_persons_there_is_no_private_run() -> None:
    assert "who is a person" in records(TASK, (X, Y)).not_private
    assert records(ALONE, (X, Y)).not_private == ""


def test_a_table_and_several_labels_stand_side_by_side() -> None:
    columns = [number("age", 0, 120), number("bmi", 5, 100)]
    task = multilabel("signs", lambda: nn.Linear(2, 2), columns, ["cough", "fever"])
    result = records(task, ([[50, 20], [60, 30]], [[1, 0], [0, 1]]), ([[70, 25]], [[1, 1]]))
    assert result.columns[".numbers"].tolist() == [[50, 20], [60, 30], [70, 25]]
    assert result.columns["fever"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (X[:, :1], Y, "of shape .* expected"),
        (X, Y[1:], "unequal length"),
        (X, Y + 0.5, "200 of 200 are no whole numbers"),
        (X, Y + 1, "no known class"),
        (X * 1e6, Y, "outside"),
        ({"age": X}, Y, "columns .*age.*, expected .*features"),
    ],
)
def test_what_does_not_fit_is_told_without_a_value(inputs: object, targets: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        records(TASK, (inputs, targets))  # type: ignore[arg-type]


def test_persons_are_counted() -> None:
    with pytest.raises(DataError, match="3 persons for 200 records"):
        records(TASK, (X, Y), persons=[1, 2, 3])


def test_values_beyond_the_bounds_and_unscaled_ones_are_told_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    ages = np.linspace(20, 90, 40, dtype=np.float32).reshape(-1, 1)
    learnt = (ages[:, 0] > 50).astype(np.int64)
    with pytest.raises(DataError, match=r"bounds=\(low, high\) of classifier"):
        records(classifier("own", lambda: nn.Linear(1, 2), (1,), 2, one_row_a_person=True), (ages, learnt))
    records(classifier("own", lambda: nn.Linear(1, 2), (1,), 2, bounds=(0, 120), one_row_a_person=True), (ages, learnt))
    assert "unscaled" in caplog.text and "number(" in caplog.text
    assert classifier("own", lambda: nn.Linear(1, 2), (1,), 2, learnt="outcome").schema.targets[0].name == "outcome"


@pytest.mark.parametrize("columns", [["a", "label"], ["a", "b", "label"]])
def test_a_data_frame_is_no_pair_of_arrays_and_is_told_where_it_goes(columns: list[str]) -> None:
    """A frame of two columns was taken for their names, one of three was a bare ValueError."""
    frame = pd.DataFrame(np.zeros((4, len(columns))), columns=columns)
    said = r"takes \(inputs, targets\), got DataFrame; a data frame goes into simulate\(\) as it is"
    with pytest.raises(DataError, match=said):
        records(TASK, frame)
    with pytest.raises(DataError, match=said):
        records(TASK, (X, Y), frame)
