"""`sovfed model`: a run, a folder or a file in, predictions out."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.federation.models.made_tasks import BINARY, RUN, model_of

from sovfed.clients.cli.use import cli
from sovfed.clients.models.predicted import _csv, _Rows
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.models.saved import load_model, save_model
from sovfed.federation.tasks import registry
from sovfed.federation.tasks.declared import task_from_text

TABLE = """patient;age;dose;flat;smoker;seen;ward;sex
a-1;50;;7;oui;1970-01-02;;m
a-2;100;2;7;no;2000-01-01;B;f
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An agency's home with a finished run, a run that is on its way, and a table."""
    for name in ("study-1", "study-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    save_model(tmp_path / "runs" / "study-1", BINARY, *model_of(BINARY), RUN)
    (tmp_path / "table.csv").write_text(TABLE)
    return tmp_path


def run(home: Path, *args: str) -> str:
    return CliRunner().invoke(cli, [*args, "--home", str(home)], catch_exceptions=False).output


def test_a_run_its_folder_and_its_file_predict_the_same(home: Path) -> None:
    folder = home / "runs" / "study-1"
    meant = ("study-1", str(folder), str(folder / "model.safetensors"))
    shown = {run(home, "predict", model, str(home / "table.csv")) for model in meant}
    (text,) = shown
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["line"] for row in rows] == ["2", "3"]
    expected = load_model(folder).predict_rows(
        {"age": [50, 100], "dose": [None, 2], "flat": [7, 7], "smoker": [1, 0], "seen": ["1970-01-02", "2000-01-01"],
         "ward": [None, "B"], "sex": ["m", "f"]}
    )  # fmt: skip
    assert [row["outcome"] for row in rows] == expected["outcome"].tolist()
    chances = [float(row["probability_ill"]) for row in rows]
    assert chances == pytest.approx(expected["probability_ill"].tolist(), rel=1e-5)


def test_predictions_are_written_for_the_owner_alone_with_the_chosen_id(home: Path) -> None:
    out = home / "predictions.csv"
    told = run(home, "predict", "study-1", str(home / "table.csv"), "--out", str(out), "--id", "patient")
    assert told == f"{out}: 2 predictions\n" and out.stat().st_mode & 0o777 == 0o600
    assert [row["patient"] for row in csv.DictReader(out.read_text().splitlines())] == ["a-1", "a-2"]


def test_the_settings_beside_a_table_hold_for_predictions_too(home: Path) -> None:
    """As the table was checked and joined with: but what the command line says comes first."""
    expected = run(home, "predict", "study-1", str(home / "table.csv"))
    own = home / "own.csv"
    own.write_text(
        TABLE.replace("1970-01-02", "1970/01/02").replace("2000-01-01", "2000/01/01").replace(";oui", ";raucht")
    )
    (home / "own.yaml").write_text('data: {date_format: "%Y/%m/%d", mapping: own.yml, person: patient}')
    (home / "own.yml").write_text("columns: {smoker: {values: {raucht: oui}}}")
    shown = CliRunner().invoke(cli, ["predict", "study-1", str(own), "--home", str(home)], catch_exceptions=False)
    assert shown.stdout == expected and shown.stderr == f"with the settings in {home / 'own.yaml'}\n"
    other = CliRunner().invoke(cli, ["predict", "study-1", str(own), "data.date_format=%d", "--home", str(home)])
    assert isinstance(other.exception, DataError) and "no dates" in str(other.exception)


def test_what_it_is_is_shown(home: Path) -> None:
    text = run(home, "show", "study-1")
    for told in ("t_binary", "3 rounds, 2 institutions", "classes: well, ill", "auc 0.750", "distributed, ε = 1.250"):
        assert told in text
    assert "next: sovfed model predict study-1 FILE.csv" in text
    assert json.loads(run(home, "show", "study-1", "--json"))["task"]["digest"] == BINARY.digest


@pytest.mark.parametrize(
    ("args", "error", "told"),
    [
        (("predict", "study-9", "table.csv"), ConfigError, "did you mean 'study-"),
        (("predict", "study-2", "table.csv"), ConfigError, "no model yet"),
        (("predict", "../study-1", "table.csv"), ConfigError, "no file and no run"),
        (("predict", "study-1", "none.csv"), DataError, "none.csv: no such file"),
        (("export", "study-1"), ConfigError, "choose --torch FILE"),
        (("export", "study-1", "--hf", "hf"), ConfigError, "none of Hugging Face's"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], error: type[Exception], told: str
) -> None:
    monkeypatch.chdir(home)
    result = CliRunner().invoke(cli, [*args, "--home", str(home)])
    assert isinstance(result.exception, error) and told in str(result.exception)


@pytest.mark.apart
def test_an_export_says_what_it_takes(home: Path) -> None:
    out = home / "model.pt2"
    told = run(home, "export", "study-1", "--torch", str(out))
    takes = "numbers float32 ['n', 5] (age, dose, flat, smoker, seen), codes int64 ['n', 2] (ward: A/B/C, sex: f/m)"
    assert told == f"{out}: written; inputs: {takes}\n" and out.exists()


def test_images_are_predicted_by_the_table_that_names_them(home: Path) -> None:
    """In batches of two, each beside its name; expected from the module itself, image by image."""
    text = (
        'format: 1\nname: leaves\ntitle: leaves\nversion: "1"\nperson: one row a person\n'
        "columns: {scan: {kind: image, shape: [1, 8, 8]}}\n"
        "target: {kind: binary, column: ill, classes: [well, ill]}\nmodel: {family: cnn, widths: [4]}\n"
    )
    task = dataclasses.replace(task_from_text(text), evaluation_batch=2)
    registry.add(task)
    (home / "leaves").mkdir()
    save_model(home / "leaves", task, *model_of(task), RUN)
    scans = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), np.uint8)
    for number, scan in enumerate(scans):
        Image.fromarray(scan[0]).save(home / f"leaf{number}.png")
    (home / "new.csv").write_text("scan\n" + "".join(f"leaf{number}.png\n" for number in range(5)))
    told = run(home, "predict", str(home / "leaves"), str(home / "new.csv"), "--id", "scan")
    rows = list(csv.DictReader(told.splitlines()))
    assert [row["scan"] for row in rows] == [f"leaf{number}.png" for number in range(5)]
    loaded = load_model(home / "leaves")
    expected = [loaded.predict({"scan": scan[None]})["probability_ill"][0] for scan in scans]
    assert [float(row["probability_ill"]) for row in rows] == pytest.approx(expected, rel=1e-4)
    (home / "leaf3.png").write_bytes(b"")
    result = CliRunner().invoke(cli, ["predict", str(home / "leaves"), str(home / "new.csv"), "--home", str(home)])
    assert isinstance(result.exception, DataError) and "1 file does not fit (line 5)" in str(result.exception)
    told = run(home, "predict", str(home / "leaves"), str(home / "new.csv"), "--id", "scan", "--skip-bad")
    again = list(csv.reader(told.splitlines()))
    assert again[4] == ["leaf3.png", "", "", ""] and [row["ill"] for row in rows[:3]] == [row[1] for row in again[1:4]]
    assert "1 of 5 rows have no prediction: column 'scan': 1 file does not fit (line 5)" in told


def test_no_word_of_a_task_becomes_a_formula_in_a_spreadsheet() -> None:
    """A class called =HYPERLINK(...) would be run by who opens the predictions."""
    words = np.array(["=1+1", "+cmd|x", "-2+3", "@A1", "+", "-", "-5", "ill"])
    rows = _Rows([str(place) for place in range(len(words))], [True] * len(words))
    text = _csv("=row", rows, {"class": words, "probability_=1": np.zeros(8)})
    header, *lines = list(csv.reader(text.splitlines()))
    assert header == ["'=row", "class", "probability_=1"]
    assert [line[1] for line in lines] == ["'=1+1", "'+cmd|x", "'-2+3", "'@A1", "+", "-", "-5", "ill"]


@pytest.mark.parametrize("seen", ["1970-01-02", "02.01.1970"])
def test_only_what_is_wrong_is_told_whichever_way_days_are_written(home: Path, seen: str) -> None:
    (home / "wrong.csv").write_text(TABLE.replace("1970-01-02", seen).replace(";m", ";villa"))
    with pytest.raises(DataError) as caught:
        run(home, "predict", "study-1", str(home / "wrong.csv"))
    assert "column 'sex': 1 value is no known word (line 2)" in str(caught.value)
    assert "column 'seen'" not in str(caught.value)


def test_a_prediction_takes_how_its_table_is_written_and_nothing_else(home: Path) -> None:
    (home / "own.csv").write_text(TABLE.replace(";50;", ";-99;").replace(";m", ";Herr"))
    (home / "own.yaml").write_text("columns: {sex: {values: {herr: m}}}")
    settings = ["data.missing_words=[-99]", f"data.mapping={home / 'own.yaml'}"]
    with pytest.raises(DataError, match="column 'age': 1 value is missing"):
        run(home, "predict", "study-1", str(home / "own.csv"), *settings)
    (home / "own.csv").write_text(TABLE.replace(";m", ";Herr"))
    told = run(home, "predict", "study-1", str(home / "own.csv"), *settings)
    assert told == run(home, "predict", "study-1", str(home / "table.csv"))
    for setting, said in (("data.person=patient", "--id"), ("data.limit=3", "says nothing of a table to predict for")):
        with pytest.raises(ConfigError, match=said):
            run(home, "predict", "study-1", str(home / "own.csv"), setting)


def test_bad_rows_are_skipped_where_that_is_asked_for_and_said(home: Path) -> None:
    """An age that is none, a word of no meaning and a torn row, between rows that are predicted as by themselves."""
    header, first, second = TABLE.splitlines()
    bad = "b-1;old;;7;oui;1970-01-02;;m", "b-2;50;;7;oui;1970-01-02;;villa", "b-3;50;1;2;3;4;5;6;7;8"
    (home / "bad.csv").write_text("\n".join([header, bad[0], first, bad[1], bad[2], second, ""]))
    with pytest.raises(DataError, match=r"3 of 5 rows cannot be used.*--skip-bad predicts for the others"):
        run(home, "predict", "study-1", str(home / "bad.csv"))
    out = home / "out.csv"
    told = run(home, "predict", "study-1", str(home / "bad.csv"), "--skip-bad", "--out", str(out))
    assert told.startswith(f"{out}: 2 predictions\n3 of 5 rows have no prediction: ")
    for fault in ("column 'age': 1 value is no number (line 2)", "column 'sex': 1 value is no known word (line 4)",
                  "1 row has more or fewer cells than the header (line 5)"):  # fmt: skip
        assert fault in told
    rows = list(csv.reader(out.read_text().splitlines()))[1:]
    alone = list(csv.reader(run(home, "predict", "study-1", str(home / "table.csv")).splitlines()))[1:]
    assert [row[0] for row in rows] == ["2", "3", "4", "5", "6"]
    assert [rows[1][1:], rows[4][1:]] == [row[1:] for row in alone]
    assert all(not any(row[1:]) for row in (rows[0], rows[2], rows[3]))
    named = run(home, "predict", "study-1", str(home / "bad.csv"), "--skip-bad", "--id", "patient")
    assert [line.partition(",")[0] for line in named.splitlines()[1:6]] == ["b-1", "a-1", "b-2", "", "a-2"]


def test_a_table_without_a_sound_row_is_refused_though_bad_ones_are_skipped(home: Path) -> None:
    (home / "bad.csv").write_text(TABLE.replace(";50;", ";old;").replace(";100;", ";young;"))
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        run(home, "predict", "study-1", str(home / "bad.csv"), "--skip-bad")
    (home / "codes.csv").write_text(TABLE.replace(";oui;", ";2;"))
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used.*codes such as 1 and 2"):
        run(home, "predict", "study-1", str(home / "codes.csv"), "--skip-bad")


def test_what_is_named_wrong_is_told_as_it_was_named(home: Path) -> None:
    with pytest.raises(DataError, match="lacks the column 'mrn' of --id"):
        run(home, "predict", "study-1", str(home / "table.csv"), "--id", "mrn")
    with pytest.raises(ConfigError, match="there is no folder"):
        run(home, "predict", "study-1", str(home / "table.csv"), "--out", str(home / "none" / "p.csv"))
