"""CSV as institutions export it: each form is read right, or refused with column, count and what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.clients.data.cases import AGE, DOSE, ILL, SMALL, rows, task_of, written
from tests.clients.data.csv_files import EXPECTED, PLAIN, load

from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import CODES, NUMBERS, Column, number

GERMAN = "age;dose;ill\r\n50,5;1,25;0\r\n61;0,5;1\r\n47;2;0\r\n"


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
    assert sorted(rows(load(written(tmp_path, content)))) == sorted(EXPECTED)


def test_a_column_in_another_encoding_names_persons_right(tmp_path: Path) -> None:
    text = "age,dose,ill,patient\n50,1,0,Zoë\n51,1,0,Zoé\n52,1,1,Zoë\n"
    for encoding, declared in (("cp1252", None), ("utf-8", None), ("latin-1", "latin-1"), ("utf-16", None)):
        config = written(tmp_path, text.encode(encoding), encoding=declared)
        assert load(config, SMALL).persons.tolist() == [0, 1, 0]


def test_the_log_says_how_a_file_was_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    load(written(tmp_path, GERMAN.replace("age", "größe;age").replace("\r\n", "\r\n1;").encode("cp1252")[:-2]))
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
        load(written(tmp_path, content))
    told = str(caught.value)
    assert not any(word in told for word in ("forty", "ten,", "maybe", "1_0", "0.2,", "1.050"))


def test_a_missing_value_follows_the_columns_rule(tmp_path: Path) -> None:
    stage = Column("stage", "category", categories=("I", "II"), missing="category")
    task = task_of(
        dataclasses.replace(AGE, missing="mean"), dataclasses.replace(DOSE, missing="constant", fill=1.0), stage, ILL
    )
    text = "age,dose,stage,ill\n50,,ii,0\nn.a.,2,,1\n-99,2,I ,1\n"
    records = load(written(tmp_path, text, missing_words=("-99",)), task)
    numbers = records.columns[NUMBERS]
    assert numbers[0, 0] == 50
    assert np.isnan(numbers[1:, 0]).all()
    assert np.isnan(numbers[0, 1])
    assert records.columns[CODES].tolist() == [[1], [-1], [0]]


def test_a_limit_of_detection_is_taken_where_it_is_declared(tmp_path: Path) -> None:
    text = "age,dose,ill\n50,<0.2,0\n51,> 4,1\n52,≤0.5,0\n"
    assert rows(load(written(tmp_path, text, detection_limit="limit"))) == [
        [50.0, float(np.float32(0.2)), 0.0], [51.0, 4.0, 1.0], [52.0, 0.5, 0.0],
    ]  # fmt: skip


def test_one_and_two_are_read_where_the_task_says_what_they_mean(tmp_path: Path) -> None:
    sex = Column("sex", "boolean", true=("2", "w"), false=("1", "m"))
    task = task_of(sex, dataclasses.replace(ILL, true=("2",), false=("1",)))
    records = load(written(tmp_path, "sex,ill\n1,1\n2,2\nW,ja\nM,nein\n"), task)
    assert records.columns[NUMBERS].tolist() == [[0], [1], [1], [0]]
    assert records.columns["ill"].tolist() == [0, 1, 1, 0]
    with pytest.raises(DataError, match="column 'sex': 1 value is a code that the task does not have"):
        load(written(tmp_path, "sex,ill\n0,1\n2,2\n"), task)


def test_categories_are_told_by_word_or_number(tmp_path: Path) -> None:
    grade = Column("grade", "category", categories=("low", "Middle  High", "high"))
    digits = Column("who", "category", categories=("1", "2", "3"))
    letters = Column("blood", "category", categories=("A", "a"))
    records = load(
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
    records = load(written(tmp_path, text, date_format=date_format), task_of(seen, ILL))
    assert records.columns[NUMBERS].tolist() == [[18_292], [0]]


@pytest.mark.parametrize("cell", ["31.02.2020", "2020-02-31", "2020", "18292", "yesterday"])
def test_what_is_no_day_is_no_date(tmp_path: Path, cell: str) -> None:
    task = task_of(Column("seen", "date", low=0.0, high=40_000.0), ILL)
    for date_format in (None, "%d.%m.%Y"):
        with pytest.raises(DataError, match="column 'seen': 1 value is no date"):
            load(written(tmp_path, f"seen,ill\n{cell},0\n", date_format=date_format), task)


@pytest.mark.parametrize("cell", ["60", "2020-01-31", "-43861", "4e4", "43861 days", "99999999"])
def test_what_is_no_number_of_days_is_no_date_of_excel_s(tmp_path: Path, cell: str) -> None:
    """60 is its 29th of February 1900, which never was."""
    task = task_of(Column("seen", "date", low=-40_000.0, high=40_000.0), ILL)
    with pytest.raises(DataError, match=r"column 'seen': 1 value is no date .*excel of numbers"):
        load(written(tmp_path, f"seen,ill\n{cell},0\n", date_format="excel"), task)


def test_a_format_of_days_that_is_none_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"date_format is 'dd\.mm\.yyyy', expected one as in %d"):
        DataConfig(date_format="dd.mm.yyyy")


def test_shapes_and_texts_have_columns_of_their_own(tmp_path: Path) -> None:
    curve = number("curve", 0, 9, shape=(2, 2))
    note = Column("note", "text", shape=(4,))
    task = task_of(curve, note, number("risk", -1, 1, role="target"))
    text = "curve_0_0,curve_0_1,curve_1_0,curve_1_1,note,risk\n1,2,3,4,ab,0.5\n5,6,7,8,aé日,-0.25\n"
    records = load(written(tmp_path, text), task)
    assert records.columns["curve"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert records.columns["note"].tolist() == [[98, 99, 0, 0], [98, 0xC3 + 1, 0xA9 + 1, 0xE6 + 1]]
    assert records.columns["risk"].tolist() == [0.5, -0.25]
