"""Any bytes, odd rows and long files: no row changes how another is read."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.clients.data.cases import AGE, DOSE, ILL, SMALL, rows, task_of, written
from tests.clients.data.csv_files import PLAIN, load

from sovfed.clients.data import check_private_data, load_records, natural_sites
from sovfed.clients.data.tables import delimited
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError, PrivacyError
from sovfed.federation.tasks.columns import CODES, NUMBERS, Column, number, target

SHARED = Path(__file__).parents[4] / "shared" / "cases" / "csv"


def test_lines_are_right_beside_rows_of_another_length(tmp_path: Path) -> None:
    """Line 3 is empty, line 4 has a cell too many that is empty; 6 and 8 are at fault."""
    text = "age,dose,ill\n50,1,0\n\n50,1,0,\n50,1,0\n50,x,0\n50,1,0\n50,y,0\n"
    with pytest.raises(
        DataError, match=r"2 of 6 rows cannot be used: column 'dose': 2 values are no numbers \(lines 6, 8\)"
    ):
        load(written(tmp_path, text))


def test_many_rows_are_the_same_as_few(tmp_path: Path) -> None:
    """Over several pieces of the file, with text among numbers in the last one."""
    lines = [f"{row % 100},{row % 5}.5,{row % 2},{'x' * 40}" for row in range(40_000)]
    task = task_of(AGE, dataclasses.replace(DOSE, high=9.0, missing="mean"), ILL)
    records = load(written(tmp_path, "\n".join(["age,dose,ill,note", *lines, "7, n/a ,yes,"])), task)
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
    records = load(DataConfig(source="csv", path=str(path)), task)
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
        records = load(written(tmp_path, content, bad_rows="quarantine", max_bad_share=1.0))
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
    assert not load(alone, SMALL).not_private
    config = written(tmp_path, before.encode() + more, **settings)
    with pytest.raises(PrivacyError, match="told from its records, so one person's row could change"):
        check_private_data(SMALL, config)
    assert "told from its records" in load(config, SMALL).not_private
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
    assert np.isnan(load(config, task).columns[NUMBERS][0, 0])


def test_an_odd_row_with_a_huge_cell_is_one_bad_row(tmp_path: Path) -> None:
    """It made the whole file unreadable, and wrote a traceback past the log."""
    text = f"age,dose,ill\n50,1,0\n61,2,1,{'a' * 200_000}\n"
    with pytest.raises(DataError, match="1 of 2 rows cannot be used: 1 row has more or fewer cells"):
        load(written(tmp_path, text))
    config = written(tmp_path, text, bad_rows="quarantine", max_bad_share=0.5)
    assert rows(load(config)) == [[50.0, 1.0, 0.0]]


def test_a_file_that_is_not_in_the_declared_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not utf-16 text"):
        load(written(tmp_path, PLAIN, encoding="utf-16"))


@pytest.mark.parametrize("odd", ["", "2026-01-31T10:00", "0000-01-01", "31.01.2026"])
def test_an_odd_date_changes_no_other_one_however_many_blocks_a_table_has(tmp_path: Path, odd: str) -> None:
    """Expected by Python's own calendar."""
    days = [datetime.date(1950, 1, 1) + datetime.timedelta(days=row) for row in range(30_000)]
    lines = [f"{day},{row % 100},{'no' if row % 3 else 'yes'}" for row, day in enumerate(days)]
    lines[20_000:20_000] = [f"{odd},5,no"]
    task = task_of(Column("seen", "date", low=-10_000, high=40_000), AGE, ILL)
    config = written(tmp_path, "\n".join(["seen,age,ill", *lines, ""]), bad_rows="quarantine", person="row")
    table = load(config, task).columns
    expected = [float((day - datetime.date(1970, 1, 1)).days) for day in days]
    if odd.startswith("2026"):
        expected[20_000:20_000] = [float((datetime.date(2026, 1, 31) - datetime.date(1970, 1, 1)).days)]
    assert table[NUMBERS][:, 0].tolist() == expected


@pytest.mark.parametrize("every", [1, 7, 4_000])
def test_line_breaks_in_quoted_cells_are_read_wherever_a_block_of_the_file_ends(tmp_path: Path, every: int) -> None:
    reports = ['"long, with\na ""line""\r\n and, another\n"' if row % every == 0 else "short" for row in range(9_000)]
    lines = [f"{row % 90},{report},{row % 32 / 8},{row % 2}" for row, report in enumerate(reports)]
    records = load(written(tmp_path, "\n".join(["age,report,dose,ill", *lines, ""])))
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
        assert rows(load(written(tmp_path, table))) == expected[:count]


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
    read = load(written(tmp_path, table, bad_rows="quarantine"), task).columns
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
