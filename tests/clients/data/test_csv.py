"""CSV as institutions export it: each form is read right, or refused with column, count and what to do."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.clients.data.cases import AGE, DOSE, ILL, NAMELESS, SMALL, rows, task_of, written

from sovfed.clients.data import Records, check_private_data, load_records, natural_sites, single
from sovfed.clients.data.tables import delimited
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError, PrivacyError
from sovfed.federation.tasks.columns import CODES, NUMBERS, Column, number, target

EXPECTED = [[50.5, 1.25, 0.0], [61.0, 0.5, 1.0], [47.0, 2.0, 0.0]]
PLAIN = "age,dose,ill\n50.5,1.25,0\n61,0.5,1\n47,2,0\n"
GERMAN = "age;dose;ill\r\n50,5;1,25;0\r\n61;0,5;1\r\n47;2;0\r\n"
SHARED = Path(__file__).parents[4] / "shared" / "cases" / "csv"


def _load(config: DataConfig, task: Any = NAMELESS) -> Records:
    records = load_records(task, config)
    assert isinstance(records, Records)
    return records


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.rstrip("\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", "|"),
        "sep=;\r\n" + PLAIN.replace(",", ";"),
        "\n\n" + PLAIN,
        GERMAN,
        "\ufeff" + GERMAN,
        GERMAN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        PLAIN.replace("age,dose,ill", "AGE, Dose ,ILL"),
        PLAIN.replace("61,0.5,1", " 61 , 0.5 , 1 "),
        PLAIN.replace("50.5", "+50.5").replace("47", "4.7e1"),
        PLAIN + ",,\n,,\n,,\n",
        PLAIN + "\n\n \n",
        PLAIN.replace("61,0.5,1", "61,0.5,1,").replace("47,2,0", "47,2,0,,"),
        "".join(line + ",\n" for line in PLAIN.splitlines()),
        PLAIN.replace("0\n", "no\n").replace("0.5,1\n", "0.5,Yes \n"),
        PLAIN.replace("0\n", "FALSE\n").replace("0.5,1\n", "0.5,TRUE\n"),
        PLAIN.replace("0\n", "nein\n").replace("0.5,1\n", "0.5,JA\n"),
        PLAIN.replace("0\n", "0.0\n").replace("0.5,1\n", "0.5,1.0\n"),
        'age,report,dose,ill\n50.5,"long, with\na line and ""quotes""",1.25,0\n61,,0.5,1\n47,-,2,0\n',
        f"age,report,dose,ill\n50.5,{'x' * 160_000},1.25,0\n61,b,0.5,1\n47,c,2,0\n",
        f"age,report,dose,ill\n50.5,{'x' * 2_000_000},1.25,0\n61,b,0.5,1\n47,c,2,0\n",
        "age,größe,dose,ill\n50.5,ü,1.25,0\n61,ß,0.5,1\n47,é,2,0\n".encode("cp1252"),
        b"age,note,dose,ill\n50.5,\x81\xff,1.25,0\n61,b,0.5,1\n47,c,2,0\n",
        "ill,dose,ward,age\n0,1.25,a,50.5\n1,0.5,b,61\n0,2,c,47\n",
        '"age","dose","ill"\n"50.5","1.25","0"\n"61","0.5","1"\n"47","2","0"\n',
    ],
)
def test_what_spreadsheets_write_is_read_as_it_is_meant(tmp_path: Path, content: str | bytes) -> None:
    assert sorted(rows(_load(written(tmp_path, content)))) == sorted(EXPECTED)


def test_a_column_in_another_encoding_names_persons_right(tmp_path: Path) -> None:
    text = "age,dose,ill,patient\n50,1,0,Zoë\n51,1,0,Zoé\n52,1,1,Zoë\n"
    for encoding, declared in (("cp1252", None), ("utf-8", None), ("latin-1", "latin-1"), ("utf-16", None)):
        config = written(tmp_path, text.encode(encoding), encoding=declared)
        assert _load(config, SMALL).persons.tolist() == [0, 1, 0]


def test_the_log_says_how_a_file_was_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _load(written(tmp_path, GERMAN.replace("age", "größe;age").replace("\r\n", "\r\n1;").encode("cp1252")[:-2]))
    assert "read as cp1252" in caplog.text
    assert "separator ';'" in caplog.text
    assert "decimal comma" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("age,ill\n50,0\n", r"the header lacks 1 columns: 'dose'"),
        ("age,dosis,ill\n50,1,0\n", r"'dose' \(did you mean 'dosis'\?\)"),
        ("age,dose,ill,age\n50,1,0,50\n", "names a column twice"),
        ("age,dose,ill\n50,1,0\n50,1\n", r"1 row has more or fewer cells than the header \(line 3\)"),
        ("age,dose,ill\n50,1,0\n50,1,0,4\n", r"1 row has more or fewer cells than the header \(line 3\)"),
        ("age,dose,ill\n50,forty,0\n51,2,0\n50,ten,1\n", r"column 'dose': 2 values are no numbers \(lines 2, 4\)"),
        ("age,dose,ill\n50,1_0,0\n", r"column 'dose': 1 value is no number \(line 2\)"),
        ("age,dose,ill\n50,,0\n51,NA,1\n52,n/a,1\n53,?,1\n54,null,0\n55,-,0\n", "column 'dose': 6 values are missing"),
        ("age,dose,ill\n50,<0.2,0\n", r"1 value is given as below or above a limit \(line 2\); data.detection_limit"),
        ("age,dose,ill\n50,1,0\n\n51,9,0\n", r"1 value is outside its bounds \(line 4\); expected 0 to 5"),
        ("age,dose,ill\n50,inf,0\n", "column 'dose': 1 value is outside"),
        ("age,dose,ill\n50,1,maybe\n", r"column 'ill': 1 value is no known word \(line 2\); expected 'no', 'yes'"),
        ("age,dose,ill\n50,1,1\n51,1,2\n52,1,2\n", r"column 'ill': 2 values are codes .*`true` and `false`"),
        ("age,dose,ill\n50,1,0.5\n", "column 'ill': 1 value is no known word"),
        ("age,dose,ill\n50,1,\n", "column 'ill': 1 value is missing"),
        ('age,dose,ill\n50,1,"0', "malformed CSV: a quote is not closed"),
        ("age;dose;ill\n50,5;1.5;0\n51;1,5;1\n52,5;1;0\n53,5;2;0\n", r"column 'dose': 1 value is no number \(line 2\)"),
        ("age;dose;ill\n50,5;1;0\n1.050,5;1,5;0\n", r"column 'age': 1 value is no number \(line 3\)"),
        ("", "the file is empty"),
        ("\n\n", "no header"),
        ("age,dose,ill\n", "no training and no held-out records"),
        (b"PK\x03\x04....", "save it as 'CSV UTF-8'"),
        (b"PAR1....", "data.source=parquet"),
        (b"\x1f\x8b....", "unpack it"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told_with_column_count_and_fix(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        _load(written(tmp_path, content))
    told = str(caught.value)
    assert not any(word in told for word in ("forty", "ten,", "maybe", "1_0", "0.2,", "1.050"))


def test_a_missing_value_follows_the_columns_rule(tmp_path: Path) -> None:
    stage = Column("stage", "category", categories=("I", "II"), missing="category")
    task = task_of(
        dataclasses.replace(AGE, missing="mean"), dataclasses.replace(DOSE, missing="constant", fill=1.0), stage, ILL
    )
    text = "age,dose,stage,ill\n50,,ii,0\nn.a.,2,,1\n-99,2,I ,1\n"
    records = _load(written(tmp_path, text, missing_words=("-99",)), task)
    numbers = records.columns[NUMBERS]
    assert numbers[0, 0] == 50
    assert np.isnan(numbers[1:, 0]).all()
    assert np.isnan(numbers[0, 1])
    assert records.columns[CODES].tolist() == [[1], [-1], [0]]


def test_a_limit_of_detection_is_taken_where_it_is_declared(tmp_path: Path) -> None:
    text = "age,dose,ill\n50,<0.2,0\n51,> 4,1\n52,≤0.5,0\n"
    assert rows(_load(written(tmp_path, text, detection_limit="limit"))) == [
        [50.0, float(np.float32(0.2)), 0.0], [51.0, 4.0, 1.0], [52.0, 0.5, 0.0],
    ]  # fmt: skip


def test_one_and_two_are_read_where_the_task_says_what_they_mean(tmp_path: Path) -> None:
    sex = Column("sex", "boolean", true=("2", "w"), false=("1", "m"))
    task = task_of(sex, dataclasses.replace(ILL, true=("2",), false=("1",)))
    records = _load(written(tmp_path, "sex,ill\n1,1\n2,2\nW,ja\nM,nein\n"), task)
    assert records.columns[NUMBERS].tolist() == [[0], [1], [1], [0]]
    assert records.columns["ill"].tolist() == [0, 1, 1, 0]
    with pytest.raises(DataError, match="column 'sex': 1 value is a code that the task does not have"):
        _load(written(tmp_path, "sex,ill\n0,1\n2,2\n"), task)


def test_categories_are_told_by_word_or_number(tmp_path: Path) -> None:
    grade = Column("grade", "category", categories=("low", "Middle  High", "high"))
    digits = Column("who", "category", categories=("1", "2", "3"))
    letters = Column("blood", "category", categories=("A", "a"))
    records = _load(
        written(tmp_path, "grade,who,blood,ill\n LOW,3,a,0\nmiddle high,1,A,1\n2,2,a,0\n"),
        task_of(grade, digits, letters, ILL),
    )
    assert records.columns[CODES].tolist() == [[0, 2, 1], [1, 0, 0], [2, 1, 1]]


@pytest.mark.parametrize(
    ("cells", "date_format"),
    [
        (("2020-01-31", "1970-01-01T08:00:00"), None),
        (("31.1.2020", "01.01.1970"), "%d.%m.%Y"),
        (("43861", "25569.333"), "excel"),  # Microsoft: DATEVALUE("2020-01-31"), and 1970-01-01 08:00
    ],
)
def test_dates_are_days(tmp_path: Path, cells: tuple[str, str], date_format: str | None) -> None:
    seen = Column("seen", "date", low=0.0, high=40_000.0)
    text = "seen,ill\n" + "".join(f"{cell},0\n" for cell in cells)
    records = _load(written(tmp_path, text, date_format=date_format), task_of(seen, ILL))
    assert records.columns[NUMBERS].tolist() == [[18_292], [0]]


@pytest.mark.parametrize("cell", ["31.02.2020", "2020-02-31", "2020", "18292", "yesterday"])
def test_what_is_no_day_is_no_date(tmp_path: Path, cell: str) -> None:
    task = task_of(Column("seen", "date", low=0.0, high=40_000.0), ILL)
    for date_format in (None, "%d.%m.%Y"):
        with pytest.raises(DataError, match="column 'seen': 1 value is no date"):
            _load(written(tmp_path, f"seen,ill\n{cell},0\n", date_format=date_format), task)


@pytest.mark.parametrize("cell", ["60", "2020-01-31", "-43861", "4e4", "43861 days", "99999999"])
def test_what_is_no_number_of_days_is_no_date_of_excel_s(tmp_path: Path, cell: str) -> None:
    """60 is its 29th of February 1900, which never was."""
    task = task_of(Column("seen", "date", low=-40_000.0, high=40_000.0), ILL)
    with pytest.raises(DataError, match=r"column 'seen': 1 value is no date .*excel of numbers"):
        _load(written(tmp_path, f"seen,ill\n{cell},0\n", date_format="excel"), task)


def test_a_format_of_days_that_is_none_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"date_format is 'dd\.mm\.yyyy', expected one as in %d"):
        DataConfig(date_format="dd.mm.yyyy")


def test_shapes_and_texts_have_columns_of_their_own(tmp_path: Path) -> None:
    curve = number("curve", 0, 9, shape=(2, 2))
    note = Column("note", "text", shape=(4,))
    task = task_of(curve, note, number("risk", -1, 1, role="target"))
    text = "curve_0_0,curve_0_1,curve_1_0,curve_1_1,note,risk\n1,2,3,4,ab,0.5\n5,6,7,8,aé日,-0.25\n"
    records = _load(written(tmp_path, text), task)
    assert records.columns["curve"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert records.columns["note"].tolist() == [[98, 99, 0, 0], [98, 0xC3 + 1, 0xA9 + 1, 0xE6 + 1]]
    assert records.columns["risk"].tolist() == [0.5, -0.25]


def test_a_name_written_in_several_ways_is_one_person(tmp_path: Path) -> None:
    names = ["Zoë", "Zoe\u0308", " Zoë", "Zoë\u00a0", "zoë", "A  B", "A B", "007", "7"]
    text = "age,dose,ill,patient\n" + "".join(f"50,1,0,{name}\n" for name in names)
    assert _load(written(tmp_path, text), SMALL).persons.tolist() == [0, 0, 0, 0, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("name", ["", "NaN", " ", "<NA>", "null"])
def test_a_row_of_nobody_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"1 row names no person \(line 3\)"):
        _load(written(tmp_path, f"age,dose,ill,patient\n50,1,0,a\n51,1,0,{name}\n"), SMALL)


def test_a_file_is_split_by_person(tmp_path: Path) -> None:
    lines = [f"ward,{row % 20},{row % 2},{row % 5},{30 + row % 40}" for row in range(60)]
    records = _load(written(tmp_path, "\n".join(["place,patient,ill,dose,age", *lines])), SMALL)
    assert rows(records)[:2] == [[30, 0, 0], [31, 1, 1]]
    assert "60 records of 20 persons" in repr(records)
    assert not set(records.persons[records.train]) & set(records.persons[records.test])


def test_who_is_held_out_is_settled_by_the_task_and_the_name_alone(tmp_path: Path) -> None:
    """SHA-256 of "small/held-out/p0" … begins with a number below 0.3 of all for these of ten names (by sha256sum)."""
    import hashlib

    text = "age,dose,ill,patient\n" + "".join(f"5{row},1,0,p{row}\n" for row in range(10))
    records = _load(written(tmp_path, text), SMALL)
    firsts = [hashlib.sha256(f"small/held-out/p{row}".encode()).hexdigest()[:4] for row in range(10)]
    assert records.test.tolist() == [row for row, first in enumerate(firsts) if int(first, 16) < 0.3 * 65_536]


LINES = [f"{30 + row % 7},{row % 3},{row % 2}" for row in range(80)]  # 42 different ones: some thrice


def _sides(records: Records) -> tuple[list[list[float]], list[list[float]]]:
    values = rows(records)
    return sorted(values[row] for row in records.train), sorted(values[row] for row in records.test)


@pytest.mark.parametrize("gone", [0, 1, 42, 79])
def test_a_row_less_moves_no_other_row_to_the_other_side(tmp_path: Path, gone: int) -> None:
    """Where each row is a person, also if others are like it, and if it stands before all others."""
    texts = ["\n".join(["age,dose,ill", *kept]) for kept in (LINES, LINES[:gone] + LINES[gone + 1 :])]
    sides = [_sides(_load(written(tmp_path, text, person="row"))) for text in texts]
    (train, test), (train_less, test_less) = sides
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
        records = _load(config)
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
    assert f"set data.person={name}" in _load(config).not_private
    assert f"'{name}' looks like a column of persons" in caplog.text
    with pytest.raises(PrivacyError, match=f"set data.person={name}"):
        check_private_data(NAMELESS, config)
    assert len(np.unique(_load(dataclasses.replace(config, person=name)).persons)) == 9


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
    records = _load(written(tmp_path, PLAIN), task_of(AGE, DOSE, ILL, one_row_a_person=True))
    assert (records.several_records, records.not_private) == (False, "")


def test_bad_rows_are_left_out_up_to_a_share_and_listed_privately(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"{30 + row},1,0,p{row}" for row in range(40)]
    lines[3], lines[7] = "33,secret,0,p3", "37,9,0,p7"
    config = written(tmp_path, "\n".join(["age,dose,ill,patient", *lines]), bad_rows="quarantine")
    records = _load(config, SMALL)
    assert len(records) == 38
    listed = tmp_path / "records.csv.bad-rows"
    assert listed.read_text() == 'line,column,fault\n5,"dose",number\n9,"dose",outside\n'
    assert listed.stat().st_mode & 0o777 == 0o600
    assert "2 of 40 rows left out" in caplog.text
    assert "secret" not in caplog.text
    for share, file in ((0.04, None), (0.05, str(tmp_path / "else"))):
        changed = dataclasses.replace(config, max_bad_share=share, bad_rows_file=file)
        if share < 0.05:
            with pytest.raises(DataError, match=r"2 of 40 rows cannot be used, more than data.max_bad_share 0.04"):
                _load(changed, SMALL)
        else:
            assert len(_load(changed, SMALL)) == 38
            assert (tmp_path / "else").exists()


def test_the_list_of_bad_rows_is_written_over_no_other_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Settings that somebody else has made may name any file of this user's."""
    other, link = tmp_path / "authorized_keys", tmp_path / "link"
    other.write_text("ssh-ed25519 AAAA mine\n")
    link.symlink_to(other)
    lines = [f"{30 + row},1,0,p{row}" for row in range(40)]
    lines[3] = "33,secret,0,p3"
    text = "\n".join(["age,dose,ill,patient", *lines])
    for path in (other, link, tmp_path):
        assert len(_load(written(tmp_path, text, bad_rows="quarantine", bad_rows_file=str(path)), SMALL)) == 39
        assert f"they are not written to {path}, which is another file" in caplog.text
    assert other.read_text() == "ssh-ed25519 AAAA mine\n"
    assert link.is_symlink()
    for _ in range(2):  # its own list is written anew
        _load(written(tmp_path, text, bad_rows="quarantine", bad_rows_file=str(tmp_path / "list")), SMALL)
        assert (tmp_path / "list").read_text() == 'line,column,fault\n5,"dose",number\n'


def test_codes_without_a_meaning_are_never_left_out(tmp_path: Path) -> None:
    """1 and 2 for no and yes: with few of class 2 all others would be read as the wrong class."""
    text = "\n".join(["age,dose,ill", *["50,1,1"] * 60, "51,1,2"])
    with pytest.raises(DataError, match="column 'ill': 1 value is a code"):
        _load(written(tmp_path, text, bad_rows="quarantine"))


def test_a_row_at_fault_changes_nothing_for_another(tmp_path: Path) -> None:
    whole = _load(
        written(tmp_path, "\n".join(["age,dose,ill,patient", *(f"{line},p{row}" for row, line in enumerate(LINES))])),
        SMALL,
    )
    lines = [f"{line},p{row}" for row, line in enumerate(LINES)]
    lines.insert(5, "1,<0.1,0,q")
    less = _load(written(tmp_path, "\n".join(["age,dose,ill,patient", *lines]), bad_rows="quarantine"), SMALL)
    assert _sides(whole) == _sides(less)


def test_a_column_may_have_its_own_name_here(tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("columns: {age: Alter, ill: krank}\n")
    config = written(
        tmp_path, PLAIN.replace("age", "Alter").replace("ill", "Krank"), mapping=str(tmp_path / "names.yaml")
    )
    assert rows(_load(config)) == EXPECTED


def test_a_folder_has_a_file_for_each_site(tmp_path: Path) -> None:
    for site, age in (("north", 40), ("south", 60)):
        written(tmp_path, f"age,dose,ill\n{age},1,0\n", f"{site}.csv")
    (tmp_path / "north.csv.bad-rows").write_text("")
    config = DataConfig(source="csv", path=str(tmp_path), site="south")
    assert natural_sites(config) == ("north", "south")
    assert not single(config)
    assert rows(_load(config)) == [[60, 1, 0]]
    with pytest.raises(DataError, match=r"no file of site 'nort'.*did you mean 'north'"):
        _load(dataclasses.replace(config, site="nort"))


def test_a_column_may_tell_the_sites(tmp_path: Path) -> None:
    config = written(
        tmp_path, "age,ward,dose,ill\n40, b ,1,0\n50,a,1,1\n60,b,2,1\nbad,a,1,1\n", site_column="Ward", site="b"
    )
    assert natural_sites(config) == ("a", "b")
    assert not single(config)
    assert rows(_load(config)) == [[40, 1, 0], [60, 2, 1]]


def test_a_single_file_is_one_institutions(tmp_path: Path) -> None:
    config = written(tmp_path, PLAIN)
    assert natural_sites(config) == ()
    assert single(config)
    assert not single(DataConfig(source="breast_cancer"))


def test_a_file_that_the_sealed_trainer_may_not_open_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, "age,dose,ill,patient\n50,1,0,Ada\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "open", refuse)
    for read in (load_records, check_private_data):
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\); if it was replaced .*client down"):
            read(SMALL, config)


def test_lines_are_right_beside_rows_of_another_length(tmp_path: Path) -> None:
    """Line 3 is empty, line 4 has a cell too many that is empty; 6 and 8 are at fault."""
    text = "age,dose,ill\n50,1,0\n\n50,1,0,\n50,1,0\n50,x,0\n50,1,0\n50,y,0\n"
    with pytest.raises(
        DataError, match=r"2 of 6 rows cannot be used: column 'dose': 2 values are no numbers \(lines 6, 8\)"
    ):
        _load(written(tmp_path, text))


def test_many_rows_are_the_same_as_few(tmp_path: Path) -> None:
    """Over several pieces of the file, with text among numbers in the last one."""
    lines = [f"{row % 100},{row % 5}.5,{row % 2},{'x' * 40}" for row in range(40_000)]
    task = task_of(AGE, dataclasses.replace(DOSE, high=9.0, missing="mean"), ILL)
    records = _load(written(tmp_path, "\n".join(["age,dose,ill,note", *lines, "7, n/a ,yes,"])), task)
    expected = np.array([[row % 100, row % 5 + 0.5] for row in range(40_000)], np.float32)
    assert np.array_equal(records.columns[NUMBERS][:-1], expected)
    assert np.isnan(records.columns[NUMBERS][-1, 1])
    assert records.columns["ill"].tolist() == [row % 2 for row in range(40_000)] + [1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection of real exports is not beside the repository")
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.csv")), ids=lambda path: path.stem)
def test_the_collected_exports_are_all_read(path: Path) -> None:
    lactate = number("lactate", 0, 30, missing="mean")
    sbp, bmi = number("sbp", 50, 260), number("bmi", 10, 60)
    glucose = number("glucose", 1, 600, unit="mg/dl", plausible=(70.0, 200.0))
    task = task_of(AGE, bmi, glucose, sbp, lactate, target("ill", "no", "yes"))
    records = _load(DataConfig(source="csv", path=str(path)), task)
    counts = {"hospital_with_1_patients": 1, "hospital_with_3_patients": 3, "batchnorm1d_last_batch_of_one": 176}
    assert len(records) == counts.get(path.stem, 240)
    if path.stem not in ("one_class_only", *counts):
        assert records.columns["ill"].sum() == 121
        assert records.columns[NUMBERS][:, 0].mean() == pytest.approx(60.524, abs=1e-3)


PIECES = ['"', ",", ";", "\n", "\r\n", "0", "1,5", "<2", "é", "\x00", "age,dose,ill\n", "sep=,\n"]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=80),
        st.lists(st.sampled_from(PIECES), max_size=30).map(lambda parts: "".join(parts).encode()),
        st.binary(max_size=60).map(lambda rest: b"age,dose,ill\n1,1,0\n" + rest),
    )
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    try:
        records = _load(written(tmp_path, content, bad_rows="quarantine", max_bad_share=1.0))
    except DataError:
        return
    assert len(records) >= 1


PERSONS = "patient,age,dose,ill\n" + "".join(f"Müller{place},{place},1,0\n" for place in range(40))


@pytest.mark.parametrize(
    ("before", "more", "bad_rows", "declared"),
    [
        (PERSONS, b"z\xff,50,1,0\n", "refuse", {"encoding": "cp1252"}),  # every other name would be read otherwise
        (PERSONS, b"z,50,1,0,,\n", "quarantine", {}),  # rows with cells too many would be taken
        (PERSONS.replace(",1,", ",1.5,").replace(",", "\t"), b"z\t50\t1,5\t0\n" * 41, "quarantine", {"decimal": "."}),
    ],
)
def test_no_private_run_uses_a_table_whose_way_of_writing_is_told_from_records(
    tmp_path: Path, before: str, more: bytes, bad_rows: str, declared: dict[str, Any]
) -> None:
    """One person's rows would move others from the training to the held-out part, or leave them out."""
    settings: dict[str, Any] = {"bad_rows": bad_rows, "max_bad_share": 1.0}
    alone = written(tmp_path, before, "alone.csv", **settings)
    check_private_data(SMALL, alone)
    assert not _load(alone, SMALL).not_private
    config = written(tmp_path, before.encode() + more, **settings)
    with pytest.raises(PrivacyError, match="told from its records, so one person's row could change"):
        check_private_data(SMALL, config)
    assert "told from its records" in _load(config, SMALL).not_private
    if declared:
        check_private_data(SMALL, dataclasses.replace(config, **declared))


@pytest.mark.parametrize("other", ["1", "k.A.", "1.0 "])
@pytest.mark.parametrize("spelling", ["-99", "-99.0", " -99 ", "-9.9e1"])
def test_a_number_that_stands_for_a_missing_value_is_none_whatever_the_other_rows_hold(
    tmp_path: Path, spelling: str, other: str
) -> None:
    """It was a value within the bounds as long as all rows of the column were plain numbers."""
    task = task_of(number("excess", -100, 100, missing="mean"), ILL)
    config = written(tmp_path, f"excess,ill\n{spelling},0\n{other},1\n", missing_words=("-99",), person="row")
    assert np.isnan(_load(config, task).columns[NUMBERS][0, 0])


def test_an_odd_row_with_a_huge_cell_is_one_bad_row(tmp_path: Path) -> None:
    """It made the whole file unreadable, and wrote a traceback past the log."""
    text = f"age,dose,ill\n50,1,0\n61,2,1,{'a' * 200_000}\n"
    with pytest.raises(DataError, match="1 of 2 rows cannot be used: 1 row has more or fewer cells"):
        _load(written(tmp_path, text))
    config = written(tmp_path, text, bad_rows="quarantine", max_bad_share=0.5)
    assert rows(_load(config)) == [[50.0, 1.0, 0.0]]


def test_a_file_that_is_not_in_the_declared_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not utf-16 text"):
        _load(written(tmp_path, PLAIN, encoding="utf-16"))


@pytest.mark.parametrize("odd", ["", "2026-01-31T10:00", "0000-01-01", "31.01.2026"])
def test_an_odd_date_changes_no_other_one_however_many_blocks_a_table_has(tmp_path: Path, odd: str) -> None:
    """Expected by Python's own calendar."""
    days = [datetime.date(1950, 1, 1) + datetime.timedelta(days=row) for row in range(30_000)]
    lines = [f"{day},{row % 100},{'no' if row % 3 else 'yes'}" for row, day in enumerate(days)]
    lines[20_000:20_000] = [f"{odd},5,no"]
    task = task_of(Column("seen", "date", low=-10_000, high=40_000), AGE, ILL)
    config = written(tmp_path, "\n".join(["seen,age,ill", *lines, ""]), bad_rows="quarantine", person="row")
    table = _load(config, task).columns
    expected = [float((day - datetime.date(1970, 1, 1)).days) for day in days]
    if odd.startswith("2026"):
        expected[20_000:20_000] = [float((datetime.date(2026, 1, 31) - datetime.date(1970, 1, 1)).days)]
    assert table[NUMBERS][:, 0].tolist() == expected


@pytest.mark.parametrize("every", [1, 7, 4_000])
def test_line_breaks_in_quoted_cells_are_read_wherever_a_block_of_the_file_ends(tmp_path: Path, every: int) -> None:
    reports = ['"long, with\na ""line""\r\n and, another\n"' if row % every == 0 else "short" for row in range(9_000)]
    lines = [f"{row % 90},{report},{row % 32 / 8},{row % 2}" for row, report in enumerate(reports)]
    records = _load(written(tmp_path, "\n".join(["age,report,dose,ill", *lines, ""])))
    expected = [[row % 90, row % 32 / 8, row % 2] for row in range(len(reports))]
    assert rows(records) == expected


def test_line_breaks_in_quoted_cells_are_read_wherever_the_last_block_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless Arrow looks for quotes, it tells of a block that begins within a cell, but not always of the last one."""
    monkeypatch.setattr(delimited, "BLOCK", 1 << 12)
    lines = [f'{row % 90},"with\na line\r\n and, ""another""\n",{row % 32 / 8},{row % 2}' for row in range(320)]
    expected = [[row % 90, row % 32 / 8, row % 2] for row in range(len(lines))]
    for count in range(100, 320, 10):
        table = "\n".join(["age,report,dose,ill", *lines[:count], ""])
        assert rows(_load(written(tmp_path, table))) == expected[:count]


@pytest.mark.parametrize("note", ["", '"a, b"'])
def test_words_between_numbers_are_kept_with_their_row_in_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: str
) -> None:
    """Over many blocks, some with a row that is left out, some with a word that was not met before."""
    monkeypatch.setattr(delimited, "BLOCK", 1 << 10)
    grade = Column("grade", "category", categories=("none", "mild", "severe"))
    task = task_of(AGE, Column("smokes", "boolean"), grade, DOSE, ILL)
    lines, expected = [], []
    for row in range(2_000):
        smokes = ("yes", "no", "Ja")[(row % 2) + (row > 1_500 and row % 10 == 1)]
        word = (
            "unheard of"
            if row % 700 == 699
            else grade.categories[row % 3].upper()
            if row > 900
            else grade.categories[row % 3]
        )
        lines.append(f"{row % 90},{smokes},{word},{row % 32 / 8},{row % 2},{note}")
        if row % 700 != 699:
            expected.append([row % 90, smokes != "no", row % 32 / 8, row % 3, row % 2])
    table = "\n".join(["age,smokes,grade,dose,ill,note", *lines, ""])
    read = _load(written(tmp_path, table, bad_rows="quarantine"), task).columns
    assert np.column_stack([read[NUMBERS], read[CODES], read["ill"]]).tolist() == expected


def test_what_is_no_text_and_what_is_empty_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "image.csv").write_bytes(b"\x89PNG" + np.random.default_rng(0).bytes(5_000))
    (tmp_path / "none.csv").touch()
    for name, told in (("image", "no text, so no CSV file"), ("none", "the file is empty")):
        with pytest.raises(DataError, match=told):
            load_records(task_of(AGE, ILL), DataConfig(source="csv", path=str(tmp_path / f"{name}.csv")))


def test_two_sites_of_one_table_or_one_name_are_refused(tmp_path: Path) -> None:
    """Their persons would count twice, and stand on both sides of a comparison."""
    config = DataConfig(source="csv", path=str(tmp_path))
    for name in ("alder", "birch"):
        (tmp_path / f"{name}.csv").write_text("age,ill\n30,1\n40,0\n")
    with pytest.raises(DataError, match=r"alder\.csv and birch\.csv are the same"):
        natural_sites(config)
    (tmp_path / "birch.csv").rename(tmp_path / "Alder.CSV")
    with pytest.raises(DataError, match=r"two files of site 'alder'.*Alder\.CSV"):
        natural_sites(config)


def test_a_setting_of_another_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ward.csv"
    path.write_text("age,ill\n30,1\n40,0\n")
    asked = DataConfig(source="csv", path=str(path), query="select 1")
    beside = DataConfig(source="csv", path=str(path), table="persons.csv")
    for config, told in ((asked, r"data\.query is for data\.source 'sql'"), (beside, r"data\.table is for .*'images'")):
        with pytest.raises(DataError, match=told):
            load_records(task_of(AGE, ILL), config)
