"""`sovfed client check-data` and `sovfed data sources`: what is told of a table, and that no value is."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.clients.data.cases import AGE, DOSE, ILL, task_of

from sovfed.clients.cli.data import check_data, data
from sovfed.clients.cli.institution import cli as institution
from sovfed.clients.cli.join import data_overrides
from sovfed.clients.data.survey import report
from sovfed.clients.data.tables.units import suspected
from sovfed.clients.data.tables.words import Rules, Words
from sovfed.clients.home.folder import load_config
from sovfed.clients.home.overrides import client_config
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.tasks import registry
from sovfed.federation.tasks.columns import Column, number

if TYPE_CHECKING:
    from pathlib import Path

GRADED = Column("grade", "category", role="target", categories=("low", "high"))
GLUCOSE = number("glucose", 2, 600, unit="mg/dl", plausible=(70.0, 200.0))
TASK = dataclasses.replace(
    task_of(
        AGE,
        dataclasses.replace(DOSE, missing="mean"),
        GLUCOSE,
        Column("stage", "category", categories=("I", "II")),
        ILL,
    ),
    name="looked-at",
)
TASK = dataclasses.replace(TASK, build=lambda: torch.nn.Linear(TASK.transform.width, 1))
HEADER = "age,dose,glucose,stage,ill,mrn"
SOUND = [f"{40 + row},1,{5 + row / 10},II,{row % 2},m{row // 2}" for row in range(20)]
FAULTY = ["secret,1,6,I,0,m30", "41,,6,IV,0,m31", "41,9,6,I,1,m32", "300,1,6,I,1,"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    registry.add(TASK)
    path = tmp_path / "patients.csv"
    path.write_text("\n".join([HEADER, *SOUND, *FAULTY, ",,,,,"]))
    return path


def test_a_table_is_counted_by_column_and_line(table: Path) -> None:
    told = report(TASK, DataConfig(source="csv", path=str(table), person="mrn"))
    assert (told.rows, told.empty, told.bad, told.usable) == (24, 1, 4, False)
    columns = {column.name: column for column in told.columns}
    assert (columns["age"].unreadable, columns["age"].outside, columns["age"].first_lines) == (1, 1, (22, 25))
    assert (columns["dose"].missing, columns["dose"].allowed, columns["dose"].outside) == (1, True, 1)
    assert (columns["stage"].unknown, columns["stage"].first_lines) == (1, (23,))
    assert (columns["ill"].role, columns["ill"].missing) == ("target", 0)
    assert told.classes == {"no": 10, "yes": 10}
    assert (told.persons, told.train + told.test) == (10, 20)
    assert told.faults[-1] == "1 row names no person (line 25)"
    assert "divided by 18" not in columns["glucose"].suspicion
    assert columns["glucose"].suspicion == (
        "column 'glucose' (mg/dl): the middle of the values lies below what is plausible and would fit times 18.02 "
        "(glucose); is it in another unit? If so, in the file of data.mapping: columns: {glucose: {multiply: 18.02}}"
    )


def test_values_outside_the_bounds_also_tell_a_wrong_unit(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("kg,ill\n" + "".join(f"{70_000 + row},0\n" for row in range(9)))
    task = task_of(number("kg", 1, 400, unit="kg"), ILL)
    told = report(task, DataConfig(source="csv", path=str(path)))
    assert told.columns[0].outside == 9
    assert "100% of the values are outside the bounds and would fit divided by 1000" in told.warnings[0]
    assert "nothing says whose a row is" in told.not_private


def test_a_suspected_unit_is_no_table_to_use_as_it_is_until_the_mapping_that_is_told_mends_it(tmp_path: Path) -> None:
    registry.add(
        dataclasses.replace(task_of(number("kg", 1, 400, unit="kg", plausible=(50, 110)), ILL), name="weighed")
    )
    path, own = tmp_path / "x.csv", tmp_path / "own.yaml"
    path.write_text("kg,ill\n" + "".join(f"{170 + row},{row % 2}\n" for row in range(9)))
    looked = CliRunner().invoke(check_data, ["weighed", str(path)])
    told = " ".join(looked.output.split())
    assert "would fit divided by 2.2046" in told
    assert "it can be used as it is" not in told and told.endswith("see to the unit of kg")
    own.write_text(told.partition("data.mapping: ")[2].partition("}}")[0] + "}}")
    assert own.read_text() == "columns: {kg: {multiply: 0.45359237}}"
    mended = CliRunner().invoke(check_data, ["weighed", str(path), f"data.mapping={own}"])
    assert (looked.exit_code, mended.exit_code) == (0, 0)
    assert "\nit can be used as it is" in mended.output and "warning" not in mended.output
    assert mended.output.splitlines()[-1].startswith("next: sovfed client join INVITATION --task weighed --data ")


def test_the_command_shows_counts_and_no_value(table: Path) -> None:
    result = CliRunner().invoke(check_data, ["looked-at", str(table), "data.person=mrn"])
    assert result.exit_code == 1
    assert "24 rows (1 empty ones skipped), 4 at fault, 10 persons" in result.output
    assert "it cannot be used as it is" in result.output
    assert not any(word in result.output for word in ("secret", "300", "IV", "m30"))


def test_the_command_prints_json_and_ends_well_where_all_is(table: Path) -> None:
    settings = ["person=mrn", "bad_rows=quarantine", "max_bad_share=0.5"]
    result = CliRunner().invoke(check_data, ["looked-at", str(table), *settings, "--json"])
    told = json.loads(result.output)
    assert result.exit_code == 0
    assert told["usable"]
    assert told["columns"][2]["name"] == "glucose"


def test_a_task_of_another_source_is_told_by_its_records(tmp_path: Path) -> None:
    told = report(registry.get_task("breast_cancer"), DataConfig(site="0"))
    assert (told.usable, told.columns) == (True, ())
    assert told.rows == told.persons == told.train + told.test


def test_all_sources_are_listed_with_what_they_are() -> None:
    told = json.loads(CliRunner().invoke(data, ["sources", "--json"]).output)
    assert {"csv", "parquet", "sql", "images", "jsonl", "fhir", "omop", "uci_heart"} <= set(told)
    assert told["csv"].startswith("CSV as institutions export it")
    assert all(told.values())


def test_the_table_is_whole_at_80_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = ["hours_to_surgery", "destination_after", "haemoglobin_at_admission"]
    columns = "\n".join(f"  {name}: {{kind: number, low: 0, high: 9}}" for name in names)
    (tmp_path / "hip.yaml").write_text(
        f'format: 1\nname: hip\ntitle: hip\nversion: "1"\nperson: one row a person\ncolumns:\n{columns}\n'
        'target: {kind: binary, column: outcome, classes: ["no", "yes"]}\nmodel: {family: linear}\n'
    )
    lines = [",".join([*names, "outcome"]), *(f"{99 if row < 9 else 1},1,1,yes" for row in range(40))]
    (tmp_path / "clinic.csv").write_text("\n".join(lines))
    arguments = [str(tmp_path / "hip.yaml"), str(tmp_path / "clinic.csv")]
    shown = CliRunner().invoke(check_data, arguments).output
    assert all(any(name in line for line in shown.splitlines()) for name in names)
    assert "unit" not in shown and "such as -99" in shown
    assert "data.max_bad_share" in CliRunner().invoke(check_data, [*arguments, "data.bad_rows=quarantine"]).output


@pytest.mark.parametrize(
    ("width", "age", "target"),
    [(80, "age number 0 1 0 1", "ill category (target) 0 0 0 0"),
     (60, "age: number, 1 outside, 1 unreadable", "ill: category (target)")],
)  # fmt: skip
def test_a_narrow_terminal_cuts_nothing_off(
    table: Path, monkeypatch: pytest.MonkeyPatch, width: int, age: str, target: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = CliRunner().invoke(check_data, ["looked-at", str(table), "data.person=mrn"]).output.splitlines()
    lines = [" ".join(line.split()) for line in shown]
    assert age in lines and target in lines and max(map(len, shown[1:])) <= width
    assert any("(line 25)" in line for line in lines)


def test_records_that_no_private_run_takes_are_not_called_fit_for_use(tmp_path: Path) -> None:
    registry.add(dataclasses.replace(task_of(AGE, ILL), name="aged"))
    (tmp_path / "x.csv").write_text("age,ill,mrn\n" + "".join(f"{40 + row},{row % 2},{row}\n" for row in range(20)))
    shown = CliRunner().invoke(check_data, ["aged", str(tmp_path / "x.csv")])
    told = " ".join(shown.output.split())
    assert shown.exit_code == 0 and "it can be used as it is, but by no private run" in told
    shown = CliRunner().invoke(check_data, ["aged", str(tmp_path / "x.csv"), "data.person=mrn"])
    assert "it can be used as it is\nnext: " in shown.output


def test_a_table_s_own_settings_beside_it_are_taken_and_said(tmp_path: Path) -> None:
    (tmp_path / "hip.yaml").write_text(
        "format: 1\nname: hip\ntitle: hip\nversion: '1'\nperson: one row a person\n"
        "columns: {seen: {kind: date, low: 2000-01-01, high: 2030-01-01}}\n"
        'target: {kind: binary, column: outcome, classes: ["no", "yes"]}\nmodel: {family: linear}\n'
    )
    rows = "".join(f"{row % 28 + 1:02d}.03.2024,{'yes' if row % 3 else 'no'}\n" for row in range(40))
    (tmp_path / "birch.csv").write_text(f"seen,outcome\n{rows}")
    arguments = [str(tmp_path / "hip.yaml"), str(tmp_path / "birch.csv")]
    assert CliRunner().invoke(check_data, arguments).exit_code == 1
    (tmp_path / "birch.yaml").write_text("data: {date_format: '%d.%m.%Y'}\n")
    shown = CliRunner().invoke(check_data, arguments)
    assert shown.exit_code == 0 and "with the settings in" in shown.output and "birch.yaml" in shown.output


@pytest.mark.parametrize(
    ("name", "unit", "plausible", "middle", "told"),
    [
        ("glucose", "mmol/l", (3, 12), 126.0, ["divided by 18.02 (glucose)"]),  # 17.1, bilirubin's, would fit too
        ("Blutzucker nüchtern", "", (3, 12), 126.0, ["divided by 18.02 (glucose)"]),
        ("crp", "mg/l", (4, 12), 126.0, ["divided by 17.1 (bilirubin)", "divided by 18.02 (glucose)"]),
        ("urea", "mmol/l", (2, 9), 20.0, ["divided by 6.006 (urea)", "divided by 2.801 (urea nitrogen)"]),
        ("height", "cm", (120, 210), 66.0, ["times 2.54 (inches)"]),
        ("glucose", "mmol/l", (3, 12), 6_500.0, ["divided by 1000 (a power of ten)"]),
        ("weightgain", "kg", (50, 110), 170.0, ["divided by 2.2046 (pounds)"]),  # no triglycerides, tg
    ],
)
def test_of_factors_that_fit_the_substance_s_own_is_told_and_of_several_none_is_chosen(
    name: str, unit: str, plausible: tuple[float, float], middle: float, told: list[str]
) -> None:
    column = number(name, 0, 1e6, unit=unit, plausible=plausible)
    sentence = suspected(column, np.full(9, middle, np.float32))
    assert all(words in sentence for words in told), sentence
    assert ("multiply: FACTOR" in sentence) == (len(told) > 1)


def test_a_table_of_one_class_or_without_rows_says_so_and_numbers_taken_for_words_are_told(tmp_path: Path) -> None:
    registry.add(dataclasses.replace(task_of(number("kg", 1, 400), GRADED), name="graded"))
    path = tmp_path / "x.csv"
    path.write_text("kg,grade\n" + "".join(f"{70 + row},0\n" for row in range(9)))
    told = " ".join(CliRunner().invoke(check_data, ["graded", str(path)]).output.split())
    assert "every record is 'low'" in told and "column 'grade': 0 as 'low'; if that is not meant" in told
    path.write_text("kg,grade\n")
    nothing = CliRunner().invoke(check_data, ["graded", str(path)])
    assert nothing.exit_code == 1 and "it has no rows" in nothing.output


@pytest.mark.parametrize("order", [("no", "yes"), ("yes", "no")])
def test_of_yes_and_no_1_is_yes_in_whichever_order_they_stand(order: tuple[str, str]) -> None:
    words = Words(Column("ill", "category", role="target", categories=order), Rules())
    assert order[words.code("1")[0]] == "yes" and order[words.code("0")[0]] == "no"


def test_a_person_s_column_in_the_mapping_and_another_language_s_header_are_told_where_they_go(tmp_path: Path) -> None:
    task = task_of(*(number(f"column {place}", 0, 9) for place in range(12)), ILL)
    path, own = tmp_path / "x.csv", tmp_path / "own.yaml"
    path.write_text("Alter,krank\n3,0\n")
    with pytest.raises(
        DataError, match=r"lacks 13 columns: .*'column 11', 'ill'.*data\.mapping; it has 'Alter', 'krank'$"
    ):
        report(task, DataConfig(source="csv", path=str(path)))
    own.write_text("columns: {patient_id: Patienten-ID}\n")
    with pytest.raises(DataError, match=r"patient_id: the task has no such column; .*data\.person=COLUMN"):
        report(task, DataConfig(source="csv", path=str(path), mapping=str(own)))


def test_an_institution_joins_with_the_settings_beside_its_table(tmp_path: Path) -> None:
    path = tmp_path / "koeln.csv"
    path.write_text("x\n")
    assert data_overrides(str(path)) == ["data=own", f"data.path={path}"]
    (tmp_path / "koeln.yaml").write_text(
        'data: {decimal: ",", missing_words: [k. A., "n,b"], mapping: own.yaml, max_bad_share: 0.1}\n'
    )
    (tmp_path / "own.yaml").write_text("columns: {}\n")
    data = client_config(data_overrides(str(path))).data
    assert (data.decimal, data.missing_words, data.max_bad_share) == (",", ("k. A.", "n,b"), 0.1)
    assert (data.path, data.mapping) == (str(path), str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("words", [["study", "add", "births", "--task", "heart"], ["init", "--task", "heart"]])
def test_whatever_takes_a_table_takes_the_settings_beside_it(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "koeln.csv").write_text("x\n")
    (tmp_path / "koeln.yaml").write_text('data: {date_format: "%d.%m.%Y", missing_words: [k. A.]}\n')
    home = tmp_path / "home"
    fresh = words[0] == "init"
    assert fresh or CliRunner().invoke(institution, ["init", "--home", str(home)]).exit_code == 0
    own = ["data=own", f"data.path={tmp_path / 'koeln.csv'}", "data.missing_words=[weg]"]
    shown = CliRunner().invoke(institution, [*words, *own, "--home", str(home)])
    assert shown.exit_code == 0 and f"with the settings in {tmp_path / 'koeln.yaml'}" in shown.output, shown.output
    config = load_config(home)
    data = config.data if fresh else config.studies["births"].data
    assert (data.date_format, data.missing_words) == ("%d.%m.%Y", ("weg",))  # the command line comes first


def test_the_settings_beside_a_table_name_no_other_table(tmp_path: Path) -> None:
    """They may come from somebody else, and what was looked at would not be what is trained on."""
    (tmp_path / "koeln.csv").write_text("x\n")
    (tmp_path / "koeln.yaml").write_text("data: {path: /srv/all-of-us.csv}\n")
    with pytest.raises(ConfigError, match=r"'data\.path' is the table that lies beside it"):
        client_config(data_overrides(str(tmp_path / "koeln.csv")))


def test_a_table_that_calls_its_persons_otherwise_is_told_where_to_say_so(tmp_path: Path) -> None:
    own = task_of(number("kg", 1, 400), ILL)
    task = dataclasses.replace(own, schema=dataclasses.replace(own.schema, person="patient_id"))
    path = tmp_path / "x.csv"
    path.write_text("kg,ill,Fall\n70,0,7\n")
    with pytest.raises(DataError, match=r"lacks the column 'patient_id' of the task.*data\.person=COLUMN"):
        report(task, DataConfig(source="csv", path=str(path)))
