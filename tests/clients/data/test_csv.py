"""A CSV file as an institution exports it: what is read, who is a person, and what is said when it is wrong."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.records import inputs_of, targets_of

from sovfed.clients.data import check_private_data, load_records
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError, PrivacyError
from sovfed.federation.tasks.columns import Schema, number, target
from sovfed.federation.tasks.registry import get_task

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.clients.data import Dataset

SMALL = dataclasses.replace(
    get_task("heart"),
    schema=Schema((number("age", 0, 120), number("dose", 0, 5), target("ill", "no", "yes")), person="patient"),
)


def _csv(tmp_path: Path, text: str | bytes) -> DataConfig:
    path = tmp_path / "records.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return dataclasses.replace(DataConfig(), source="csv", path=str(path))


def test_a_name_written_in_several_ways_is_one_person(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    names = ["Zoë", "Zoe\u0308", " Zoë", "Zoë\u00a0", "zoë", "A  B", "A B"]
    path.write_text("age,dose,ill,patient\n" + "".join(f"50,1,0,{name}\n" for name in names), encoding="utf-8")
    found = load_records(SMALL, DataConfig(source="csv", path=str(path))).persons
    assert found.tolist() == [0, 0, 0, 0, 1, 2, 2]  # whether letters' case tells persons apart, only their keeper knows


def test_a_csv_file_is_read_by_its_header_and_split_by_person(tmp_path: Path) -> None:
    rows = [f"ward,{number % 20},{number % 2},{number % 5},{30 + number % 40}" for number in range(60)]
    records = load_records(SMALL, _csv(tmp_path, "\n".join(["place,patient,ill,dose,age", *rows])))
    assert inputs_of(records)[:2].tolist() == [[30, 0], [31, 1]]
    assert targets_of(records)[:3].tolist() == [0, 1, 0]
    assert len(np.unique(records.persons)) == 20
    assert "60 records of 20 persons" in repr(records)
    assert not set(records.persons[records.train]) & set(records.persons[records.test])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age,dose,ill\n", "lacks the person column 'patient'"),
        ("age,ill,patient\n", r"lacks columns \['dose'\]"),
        ("age,dose,ill,patient,age\n", "names a column twice"),
        ("age,dose,ill,patient\n50,1,0,Ada\n50,1,0\n", "line 3: 3 columns, expected 4"),
        ("age,dose,ill,patient\n50,much,0,Ada\n", "line 2: column 'dose' is not a number$"),
        ("age,dose,ill,patient\n50,1,much,Ada\n", "line 2: column 'ill' is not a number; classes .*: 0 "),
        ("age,dose,ill,patient\n50,1,0.5,Ada\n", "no class numbers"),
        ("age,dose,ill,patient\n50,1,0,\n", "1 rows name no person"),
        ("age,dose,ill,patient\n50,1,0,NaN\n50,1,0, \n51,1,0,a\n52,1,0,<NA>\n", "3 rows name no person"),
        ('age,dose,ill,patient\n50,1,0,"Ada', "malformed CSV"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("", "0 bytes"),
    ],
)
def test_a_bad_csv_file_is_told_without_its_content(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_records(SMALL, _csv(tmp_path, text))
    assert "Ada" not in str(caught.value)
    assert "much" not in str(caught.value)


def test_a_file_that_the_sealed_trainer_may_not_open_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _csv(tmp_path, "age,dose,ill,patient\n50,1,0,Ada\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    for read in (load_records, check_private_data):
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); if it was replaced .*client down"):
            read(SMALL, config)


ROWS = [f"{30 + number % 7},{number % 3},{number % 2}" for number in range(80)]  # 42 different ones: some thrice


def _sides(records: Dataset) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """The rows of either side as they are, in an order of their own."""
    rows = [
        (*features, label) for features, label in zip(inputs_of(records).tolist(), targets_of(records), strict=True)
    ]
    return tuple(sorted(rows[row] for row in side) for side in (records.train, records.test))  # type: ignore[return-value]


@pytest.mark.parametrize("gone", [0, 1, 42, 79])
def test_a_row_less_moves_no_other_row_to_the_other_side(tmp_path: Path, gone: int) -> None:
    """Where each row is a person, also if others are like it, and if it stands before all others."""
    task = dataclasses.replace(SMALL, schema=dataclasses.replace(SMALL.schema, person=""))
    config = dataclasses.replace(_csv(tmp_path, ""), person="row")
    sides = []
    for kept in (ROWS, ROWS[:gone] + ROWS[gone + 1 :]):
        _csv(tmp_path, "\n".join(["age,dose,ill", *kept]))
        sides.append(_sides(load_records(task, config)))
    (train, test), (train_less, test_less) = sides
    fewer = len(train) - len(train_less)
    whole, less = (train, train_less) if fewer else (test, test_less)
    assert (test if fewer else train) == (test_less if fewer else train_less)
    assert len(whole) == len(less) + 1
    for row in less:
        whole.remove(row)
    assert whole == [tuple(map(float, ROWS[gone].split(",")))]


def test_who_is_a_person_is_declared_and_never_counted(tmp_path: Path) -> None:
    task = dataclasses.replace(SMALL, schema=dataclasses.replace(SMALL.schema, person=""))
    named = "\n".join(
        ["age,dose,ill,person,mrn", *(f"{row},p{number},m{number // 2}" for number, row in enumerate(ROWS))]
    )
    bare = "\n".join(["age,dose,ill", *ROWS])
    for text, person, several, private in (
        (named, None, True, True),  # though nobody has two
        (named, "mrn", True, True),
        (bare, "row", False, True),
        (bare, None, False, False),
    ):
        config = dataclasses.replace(_csv(tmp_path, text), person=person)
        records = load_records(task, config)
        assert (records.several_records, records.not_private == "") == (several, private)
        assert len(np.unique(records.persons)) == (40 if person == "mrn" else 80)
        if private:
            check_private_data(task, config)
        else:
            with pytest.raises(PrivacyError, match=r"declare that with data\.person=row"):
                check_private_data(task, config)


@pytest.mark.parametrize(
    ("header", "person", "said"),
    [
        ("age,dose,ill,person", "row", "each row another person, yet there is a column"),
        ("age,dose,ill,row", "row", "each row another person, yet there is a column"),
        ("age,dose,ill", "mrn", "lacks the person column 'mrn'"),
    ],
)
def test_a_declaration_that_the_header_contradicts_is_refused(
    tmp_path: Path, header: str, person: str, said: str
) -> None:
    task = dataclasses.replace(SMALL, schema=dataclasses.replace(SMALL.schema, person=""))
    config = dataclasses.replace(_csv(tmp_path, header + "\n"), person=person)
    for read in (load_records, check_private_data):
        with pytest.raises(DataError, match=said):
            read(task, config)
