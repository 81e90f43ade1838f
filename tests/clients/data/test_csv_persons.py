"""Who is a person in a table, and on which side of the split."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from tests.clients.data.cases import AGE, DOSE, ILL, NAMELESS, SMALL, rows, task_of, written
from tests.clients.data.csv_files import LINES, PLAIN, load, sides

from sovfed.clients.data import check_private_data, load_records
from sovfed.clients.data.split import by_content
from sovfed.federation.errors import DataError, PrivacyError

STIR = 0xBF58476D1CE4E5B9  # by which a row's bits are mixed


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


def test_rows_that_differ_and_share_the_bits_they_are_mixed_into_are_not_counted_as_alike() -> None:
    """As whole numbers in a few columns do by chance, and as many as one likes that somebody has made for it."""
    values = np.random.default_rng(0).integers(0, 3, (4000, 4)).astype(np.float32)
    whole = by_content("small", {"numbers": values})
    for gone in range(40):
        others = np.delete(values, gone, 0)
        unlike = (others != values[gone]).any(1)
        less = by_content("small", {"numbers": others})
        assert (np.delete(whole, gone)[unlike] == less[unlike]).all()
        alike = ~(values != values[gone]).any(1)
        assert abs(int(whole[alike].sum()) - int(less[~unlike].sum())) <= 1


def test_a_row_made_to_share_its_bits_with_another_persons_stays_on_its_side() -> None:
    values, made = np.random.default_rng(1).random((1, 4), np.float32), []
    seed = int.from_bytes(hashlib.sha256(b"small/held-out").digest()[:8], "big")
    end = _stirred(_stirred(seed, values[0, :2]), values[0, 2:])
    for first in np.random.default_rng(2).random((4000, 2), np.float32):
        rest = np.array([(end ^ end >> 32) * pow(STIR, -1, 2**64) % 2**64 ^ _stirred(seed, first)], "<u8").view("<f4")
        if (rest >= 0).all() and (rest <= 1).all():
            made.append([*first, *rest])
    rows = np.array(made, np.float32)
    assert len(rows) > 100
    with_it = by_content("small", {"numbers": np.concatenate([values, rows])})
    assert (with_it[1:] == by_content("small", {"numbers": rows})).all()


def _stirred(state: int, values: np.ndarray) -> int:
    """The state of a row after its next two numbers, as `split.by_content` mixes them."""
    state = (state ^ int(values.view("<u8")[0])) * STIR % 2**64
    return state ^ state >> 32


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
