"""Who is a person in a table, and on which side of the split."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.clients.data.cases import AGE, DOSE, ILL, NAMELESS, SMALL, rows, task_of, written
from tests.clients.data.csv_files import LINES, PLAIN, load, sides

from sovfed.clients.data import check_private_data, load_records
from sovfed.federation.errors import DataError, PrivacyError


def test_a_name_written_in_several_ways_is_one_person(tmp_path: Path) -> None:
    names = ["Zoë", "Zoe\u0308", " Zoë", "Zoë\u00a0", "zoë", "A  B", "A B", "007", "7"]
    text = "age,dose,ill,patient\n" + "".join(f"50,1,0,{name}\n" for name in names)
    assert load(written(tmp_path, text), SMALL).persons.tolist() == [0, 0, 0, 0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("name", ["", "NaN", " ", "<NA>", "null"])
def test_a_row_of_nobody_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"1 row names no person \(line 3\)"):
        load(written(tmp_path, f"age,dose,ill,patient\n50,1,0,a\n51,1,0,{name}\n"), SMALL)


def test_a_file_is_split_by_person(tmp_path: Path) -> None:
    lines = [f"ward,{row % 20},{row % 2},{row % 5},{30 + row % 40}" for row in range(60)]
    records = load(written(tmp_path, "\n".join(["place,patient,ill,dose,age", *lines])), SMALL)
    assert rows(records)[:2] == [[30, 0, 0], [31, 1, 1]]
    assert "60 records of 20 persons" in repr(records)
    assert not set(records.persons[records.train]) & set(records.persons[records.test])


def test_who_is_held_out_is_settled_by_the_task_and_the_name_alone(tmp_path: Path) -> None:
    """SHA-256 of "small/held-out/p0" … begins with a number below 0.3 of all for these of ten names (by sha256sum)."""
    import hashlib

    text = "age,dose,ill,patient\n" + "".join(f"5{row},1,0,p{row}\n" for row in range(10))
    records = load(written(tmp_path, text), SMALL)
    firsts = [hashlib.sha256(f"small/held-out/p{row}".encode()).hexdigest()[:4] for row in range(10)]
    assert records.test.tolist() == [row for row, first in enumerate(firsts) if int(first, 16) < 0.3 * 65_536]


@pytest.mark.parametrize("gone", [0, 1, 42, 79])
def test_a_row_less_moves_no_other_row_to_the_other_side(tmp_path: Path, gone: int) -> None:
    """Where each row is a person, also if others are like it, and if it stands before all others."""
    texts = ["\n".join(["age,dose,ill", *kept]) for kept in (LINES, LINES[:gone] + LINES[gone + 1 :])]
    (train, test), (train_less, test_less) = [sides(load(written(tmp_path, text, person="row"))) for text in texts]
    fewer = len(train) - len(train_less)
    whole, less = (train, train_less) if fewer else (test, test_less)
    assert (test if fewer else train) == (test_less if fewer else train_less)
    for row in less:
        whole.remove(row)
    assert whole == [[*map(float, LINES[gone].split(","))]]


def test_who_is_a_person_is_declared_and_never_counted(tmp_path: Path) -> None:
    lines = [f"{line},p{row},m{row // 2}" for row, line in enumerate(LINES)]
    named, bare = "\n".join(["age,dose,ill,person,mrn", *lines]), "\n".join(["age,dose,ill", *LINES])
    for text, person, several, private in (
        (named, None, True, True),  # though nobody has two
        (named, "mrn", True, True),
        (bare, "row", False, True),
        (bare, None, False, False),
    ):
        config = written(tmp_path, text, person=person)
        records = load(config)
        assert (records.several_records, records.not_private == "") == (several, private)
        assert len(np.unique(records.persons)) == (40 if person == "mrn" else 80)
        if private:
            check_private_data(NAMELESS, config)
        else:
            with pytest.raises(PrivacyError, match=r"declare that with data\.person=row"):
                check_private_data(NAMELESS, config)


@pytest.mark.parametrize("name", ["patient_id", "Patient ID", "PID", "mrn", "subject", "Patientennummer", "Fall-Nr"])
def test_a_column_that_looks_like_persons_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    name = name.replace("Patientennummer", "Patient Nummer")
    text = f"age,dose,ill,{name}\n" + "".join(f"{line},P{row % 9}\n" for row, line in enumerate(LINES))
    config = written(tmp_path, text)
    assert f"set data.person={name}" in load(config).not_private
    assert f"'{name}' looks like a column of persons" in caplog.text
    with pytest.raises(PrivacyError, match=f"set data.person={name}"):
        check_private_data(NAMELESS, config)
    assert len(np.unique(load(dataclasses.replace(config, person=name)).persons)) == 9


@pytest.mark.parametrize(
    ("header", "person", "said"),
    [
        ("age,dose,ill,person", "row", "each row another person, yet there is a column"),
        ("age,dose,ill,row", "row", "each row another person, yet there is a column"),
        ("age,dose,ill", "mrn", "lacks the column 'mrn' of data.person"),
    ],
)
def test_a_declaration_that_the_header_contradicts_is_refused(
    tmp_path: Path, header: str, person: str, said: str
) -> None:
    config = written(tmp_path, header + "\n", person=person)
    for read in (load_records, check_private_data):
        with pytest.raises(DataError, match=said):
            read(NAMELESS, config)


def test_a_task_of_one_row_a_person_needs_no_setting(tmp_path: Path) -> None:
    records = load(written(tmp_path, PLAIN), task_of(AGE, DOSE, ILL, one_row_a_person=True))
    assert (records.several_records, records.not_private) == (False, "")
