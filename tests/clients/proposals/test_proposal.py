"""A task.yaml proposed from made-up files of clinics: what it says, what it leaves out, and what it never tells."""

from __future__ import annotations

import datetime
import random
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from sovfed.clients.cli.data import check_data
from sovfed.clients.cli.propose import task as group
from sovfed.clients.data.tables.words import Rules
from sovfed.clients.proposals.guesses import look
from sovfed.clients.proposals.proposal import EMPTY, propose
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.tasks.conformance import conform
from sovfed.federation.tasks.declared import task_from_text

HEAD = "patient_id;Alter;Groesse;Raucher;Station;Befund;Aufnahme;Nr;Land;Wert;Kinder;Tage;Ereignis"


def _clinic(path: Path, encoding: str = "cp1252") -> Path:
    """A German export of 120 records: semicolons, decimal commas, umlauts, missing cells, a detection limit."""
    draw = random.Random(1)
    lines = [HEAD]
    for row in range(120):
        cells = [
            f"P{row // 2:03d}", str(draw.randint(20, 94)), f"{draw.uniform(1.5, 1.99):.2f}".replace(".", ","),
            draw.choice(["ja", "nein", ""]), draw.choice(["A", "B", "Ärzte", "NA"]), f"Befund {row}: unauffällig",
            f"{draw.randint(1, 28):02d}.03.20{draw.randint(11, 24)}", str(4000 + row), "DE",
            "<0,2" if row % 7 == 0 else f"{draw.uniform(-5, 17):.1f}".replace(".", ","), str(draw.randint(0, 4)),
            str(draw.randint(1, 899)), str(draw.randint(0, 1)),
        ]  # fmt: skip
        lines.append(";".join(cells))
    path.write_bytes(("\r\n".join([*lines, ";" * 12, ""])).encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8", "utf-8-sig", "utf-16"])
def test_kinds_bounds_words_and_what_may_be_missing_are_proposed(tmp_path: Path, encoding: str) -> None:
    proposal = propose("relapse", _clinic(tmp_path / "clinic.csv", encoding), ["tage"], event="Ereignis")
    task = task_from_text(proposal.text)
    columns = {column.name: column for column in task.schema.columns}
    assert list(columns) == ["Alter", "Groesse", "Raucher", "Station", "Aufnahme", "Wert", "Kinder", "Tage", "Ereignis"]
    assert (columns["Alter"].low, columns["Alter"].high) == (0.0, 120.0)
    assert (columns["Groesse"].low, columns["Groesse"].high) == (0.0, 2.5)
    assert (columns["Raucher"].kind, columns["Raucher"].true, columns["Raucher"].missing) == (
        "boolean",
        ("ja",),
        "mean",
    )
    assert columns["Raucher"].indicator
    assert (columns["Station"].categories, columns["Station"].missing) == (("A", "B", "Ärzte"), "category")
    assert (columns["Aufnahme"].kind, columns["Aufnahme"].low) == ("date", 14610.0)  # 2010-01-01
    assert (columns["Wert"].low, columns["Wert"].high) == (-10.0, 20.0)  # a fifth beyond -5 and 17
    assert task.file is not None and task.file.target.kind == "survival"
    assert task.schema.person == "patient_id"
    assert [line.split(":")[1] for line in proposal.told[1:-1]] == [" 'Befund'", " 'Nr'", " 'Land'"]
    assert proposal.told[-1].startswith("model: linear, since there are fewer than 1,000 records here")
    declared = () if encoding.startswith("utf") else ("data.encoding=cp1252",)
    assert proposal.settings == (*declared, "data.date_format=%d.%m.%Y", "data.detection_limit=limit")
    assert all(check.held for check in conform(task))


def test_no_record_is_told(tmp_path: Path) -> None:
    """Nothing of a cell but the words of categories: no identifier, no text, no number, no date."""
    path = _clinic(tmp_path / "clinic.csv")
    proposal = propose("relapse", path, ["Tage"], event="Ereignis")
    told = proposal.text + "\n".join(proposal.told)
    cells = {cell for line in path.read_text("cp1252").splitlines()[1:] for cell in line.split(";")}
    words = {"ja", "nein", "A", "B", "Ärzte", "", "NA"}
    private = [cell for cell in cells - words if len(cell) > 2 and cell in told]
    assert set(private) <= {"120"}  # a round bound, which happens to be a number of days too
    assert "unauff" not in told and "P0" not in told and "DE" not in told


@pytest.mark.parametrize(
    ("targets", "event", "kind"),
    [
        (["Raucher"], "", "binary"), (["Station"], "", "classes"), (["Alter"], "", "number"),
        (["Raucher", "Ereignis"], "", "labels"), ([], "", "binary"),
    ],
)  # fmt: skip
def test_what_is_learnt_follows_from_the_column(tmp_path: Path, targets: list[str], event: str, kind: str) -> None:
    file = task_from_text(propose("mine", _clinic(tmp_path / "c.csv"), targets, event=event).text).file
    assert file is not None
    assert file.target.kind == kind
    assert file.target.column in ("", *targets, "Ereignis")


@pytest.mark.parametrize(
    ("targets", "person", "told"),
    [
        (["Tag"], "", "did you mean 'Tage'"), (["Befund"], "", "another value in every record"),
        (["Land"], "", "the same value"), (["Aufnahme"], "", "learn the days to it"), (["patient_id"], "", "cannot be"),
        (["Tage", "Alter"], "", "must all be yes or no"), ([], "patent_id", "did you mean 'patient_id'"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_refused(tmp_path: Path, targets: list[str], person: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        propose("mine", _clinic(tmp_path / "c.csv"), targets, person=person)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"), (b"a,b\n", "no records"), (b"a,a\n1,2\n", "stand twice"),
        (b"a,b\n1,2\n1\n", "line 3 has 1 cells, the header 2"), (b'a,b\n"1,2\n', "a quote is not closed"),
        (b"PK\x03\x04", "save it as"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_refused_with_its_line(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "broken.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        propose("mine", path)


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("age", ["1", "2.5", "NA"], "number"), ("zip", ["01069", "80331", "01069"], ""),
        ("flag", ["1", "0", "1"], "boolean"), ("sex", ["1", "2", "1"], "number"), ("sex", ["m", "w"] * 2, "category"),
        ("mrn", ["7", "90", "12"], ""), ("row", ["3", "1", "2"], ""), ("day", ["2024-01-31", "2023-02-01"], "date"),
        ("day", ["2024-02-31", "2023-02-01"], ""), ("x", ["1", "2"], ""), ("gone", ["", "NA"], ""),
        ("note", ["a" * 50, "b" * 50, "b" * 50, "a" * 50], ""), ("dose", ["<0.2", "> 5", "1"], "number"),
        ("far", ["1e300", "1"], ""),
    ],
)  # fmt: skip
def test_a_column_is_seen_by_its_cells(name: str, cells: list[str], kind: str) -> None:
    seen = look(name, cells, ".")
    assert seen.kind == kind
    assert bool(seen.reason) == (not kind)


def test_a_number_that_some_cells_lack_is_a_number_and_how_many_is_said() -> None:
    """Seen: one word for "missing" that only this hospital has, and a laboratory's value was left out of the task."""
    seen = look("crp", [f"{number / 10:.1f}" for number in range(97)] + ["n.b."] * 3, ".")
    assert seen.kind == "number" and seen.values["missing"] == "mean"
    assert "3 cells hold another word: data.missing_words" in seen.note and "n.b." not in seen.note
    assert look("crp", ["1.5", "2.5", "3.5", "n.b.", "none here", "n.b.", "1.0", "2.0"] * 9, ".").kind != "number"


def test_sentences_are_no_categories() -> None:
    assert look("remark", ["patient wishes to be moved", "check in three months time"] * 9, ".").reason == "free text"


def test_a_task_called_by_its_file_is_not_named_twice(tmp_path: Path) -> None:
    """`task new relapse.yaml` wrote relapse.yaml.yaml, whose task was called relapse.yaml."""
    arguments = ["new", "relapse.yaml", "--from-csv", str(_clinic(tmp_path / "clinic.csv")), "--target", "Raucher"]
    with CliRunner().isolated_filesystem(tmp_path):
        done = CliRunner().invoke(group, arguments, catch_exceptions=False)
        assert "wrote relapse.yaml:" in done.output and "name: relapse\n" in Path("relapse.yaml").read_text()


def test_the_command_writes_a_file_once_and_checks_it(tmp_path: Path) -> None:
    path, output = _clinic(tmp_path / "clinic.csv"), tmp_path / "relapse.yaml"
    arguments = ["new", "relapse", "--from-csv", str(path), "--target", "Raucher", "--output", str(output)]
    first = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert first.exit_code == 0 and "left out: 'Befund'" in first.output and "is missing in" in first.output
    assert "# to be confirmed" in output.read_text()
    with pytest.raises(ConfigError, match="--force"):
        CliRunner().invoke(group, arguments, catch_exceptions=False)
    checked = CliRunner().invoke(group, ["check", str(output)], catch_exceptions=False)
    assert checked.exit_code == 0 and "private runs are possible" in checked.output
    shown = CliRunner().invoke(group, ["show", str(output)], catch_exceptions=False)
    assert "Station" in shown.output and "own category" in shown.output and "digest" in shown.output
    listed = CliRunner().invoke(group, ["list"], catch_exceptions=False)
    assert "breast_cancer" in listed.output


def test_the_person_is_the_patient_rather_than_the_case(tmp_path: Path) -> None:
    file = tmp_path / "klinik.csv"
    rows = "".join(f"F{row};P-{row % 7};{50 + row % 30};{'ja' if row % 2 else 'nein'}\n" for row in range(40))
    file.write_text(f"Fall-Nr;Patienten-ID;Alter;Sturz\n{rows}", encoding="utf-8")
    assert "\nperson: Patienten-ID  # to be confirmed" in propose("sturz", file).text
    file.write_text(f"Fall-Nr;Bett;Alter;Sturz\n{rows}", encoding="utf-8")
    assert "\nperson: Fall-Nr  # to be confirmed" in propose("sturz", file).text


def test_several_files_give_one_task_that_fits_them_all(tmp_path: Path) -> None:
    """Marks of decimals, days and words differ; a column that one lacks, and a running number of each, are left out."""
    folder = tmp_path / "clinics"
    folder.mkdir()
    draw = random.Random(2)
    for name, (sep, mark, word, top) in {"north": (",", ".", "own", 60), "south": (";", ",", "Heim", 190)}.items():
        head = ["No", "age", "home", "ill"] + ["extra"] * (name == "north")
        lines = [sep.join(head)]
        for row in range(40):
            age = f"{draw.uniform(20, top):.1f}".replace(".", mark)
            cells = [str(row), age, draw.choice(["care", word]), draw.choice(["yes", "no"]), str(draw.random())]
            lines.append(sep.join(cells[: len(head)]))
        (folder / f"{name}.csv").write_text("\n".join(lines))
    proposal = propose("stay", [folder], ["ill"])
    columns = {column.name: column for column in task_from_text(proposal.text).schema.columns}
    assert list(columns) == ["age", "home", "ill"]
    assert columns["age"].high >= 190 and columns["home"].categories == ("Heim", "care", "own")
    assert "left out: 'extra': south.csv lacks it" in proposal.told and EMPTY in proposal.told
    turned = propose("stay", [folder / "south.csv", folder / "north.csv"], ["ill"])
    assert "left out: 'extra': south.csv lacks it" in turned.told  # whichever file is the first
    files = [folder / "north.csv", folder / "south.csv"]
    assert propose("stay", files, ["ill"]).text == proposal.text
    with pytest.raises(DataError, match="no file in it"):
        propose("stay", [tmp_path / "clinics" / ".."], ["ill"])


def _weights(folder: Path, site: str, factor: float = 1.0, odd: tuple[str, ...] = ()) -> Path:
    """90 made-up persons: age, weight, whether ill; `odd` cells stand in the place of the first weights."""
    draw = random.Random(site)
    lines = ["age,weight,ill"]
    for row in range(90):
        weight = odd[row] if row < len(odd) else f"{factor * draw.gauss(75, 12):.1f}"
        lines.append(f"{draw.randint(18, 95)},{weight},{draw.choice(['yes', 'no'])}")
    path = folder / f"{site}.csv"
    path.write_text("\n".join(lines))
    return path


def test_codes_of_a_missing_value_and_slips_do_not_widen_the_bounds(tmp_path: Path) -> None:
    clinic = _weights(tmp_path, "north", odd=("-99", "-99", "-99"))
    clinic.write_text(clinic.read_text().replace("\n", "\n620,71.5,no\n", 1))
    proposal = propose("ward", clinic, ["ill"])
    age, weight = task_from_text(proposal.text).schema.numbers
    assert (age.low, age.high, weight.low) == (0.0, 120.0, 0.0)
    assert weight.plausible and weight.missing == "mean" and weight.high < 200
    told = "\n".join(proposal.told)
    assert "'weight': 3 cells hold -99, taken for a missing value: data.missing_words=[-99] says so" in told
    assert "'age': 1 values lie far from all others" in told and "620" not in proposal.text + told


def test_a_code_that_is_declared_is_missing_and_no_more_said_of_it(tmp_path: Path) -> None:
    clinic = _weights(tmp_path, "north", odd=("-99", "-99"))
    arguments = ["new", "ward", "--from-csv", str(clinic), "--target", "ill", "data.missing_words=[-99]"]
    done = CliRunner().invoke(group, [*arguments, "--output", str(tmp_path / "ward.yaml")], catch_exceptions=False)
    assert done.exit_code == 0 and "cells hold" not in done.output
    weight = task_from_text((tmp_path / "ward.yaml").read_text()).schema.numbers[1]
    assert (weight.low, weight.missing) == (0.0, "mean")


def test_a_file_in_another_unit_is_named_and_does_not_become_plausible(tmp_path: Path) -> None:
    files = [_weights(tmp_path, site) for site in ("north", "south", "west")]
    proposal = propose("ward", [*files, _weights(tmp_path, "east", factor=2.2046)], ["ill"])
    (line,) = [line for line in proposal.told if "another unit" in line]
    assert line.startswith("'weight': the middle of east.csv is 2.")
    weight = task_from_text(proposal.text).schema.numbers[1]
    assert weight.plausible is not None and weight.plausible[1] < 160


def test_a_few_numbers_and_long_tails_are_left_as_they_are() -> None:
    draw = random.Random(3)
    for numbers in ([-99.0, 5.0, 7.0], [float(f"{draw.lognormvariate(1, 1):.3f}") for _ in range(400)]):
        cells = [f"{number:g}" for number in numbers]
        assert look("value", cells, ".").told == ()


def test_the_next_command_reads_the_table_as_it_is(tmp_path: Path) -> None:
    """Typed as it is printed: what a person declares of a table stands in it, and nothing twice."""
    clinic, output = _clinic(tmp_path / "clinic.csv"), tmp_path / "relapse.yaml"
    arguments = ["new", "relapse", "--from-csv", str(clinic), "--target", "Raucher", "--output", str(output)]
    done = CliRunner().invoke(group, [*arguments, "encoding=cp1252"], catch_exceptions=False)
    words = shlex.split(done.output.splitlines()[-1].partition("`")[2].removesuffix("`"))
    settings = ["encoding=cp1252", "data.date_format=%d.%m.%Y", "data.detection_limit=limit"]
    assert words == ["sovfed", "client", "check-data", str(output), str(clinic), *settings]
    quarantine = ["data.bad_rows=quarantine", "data.max_bad_share=0.5"]  # what is learnt is missing in some
    assert CliRunner().invoke(check_data, [*words[3:], *quarantine]).exit_code == 0


def test_parquet_is_proposed_from_as_csv_is(tmp_path: Path) -> None:
    draw = random.Random(4)
    ages = [draw.randint(18, 90) if row % 9 else None for row in range(90)]
    table = pa.table(
        {
            "pupil": [f"{row:05d}" for row in range(90)], "age": pa.array(ages, pa.int8()),
            "mark": [draw.choice([7.5, 8.0, 9.5, 4.25, 6.0, 5.5, 9.0]) for _ in range(90)],
            "meal": [draw.random() < 0.5 for _ in range(90)],
            "born": [datetime.date(2009, 1 + row % 12, 3) for row in range(90)],
            "tongue": pa.array([draw.choice(["fi", "sv"]) for _ in range(90)]).dictionary_encode(),
            "curve": [[1.0, 2.0]] * 90, "repeats": [draw.choice(["yes", "no"]) for _ in range(90)],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "school.parquet")
    proposal = propose("repeat", tmp_path / "school.parquet", ["repeats"])
    kinds = {column.name: column.kind for column in task_from_text(proposal.text).schema.inputs}
    assert kinds == {"age": "number", "mark": "number", "meal": "boolean", "born": "date", "tongue": "category"}
    assert proposal.told[0] == "90 records, 5 inputs; read as Parquet" and proposal.settings == ()
    assert any(line.startswith("left out: 'curve': lists") for line in proposal.told)
    (tmp_path / "repeat.yaml").write_text(proposal.text)
    looked = CliRunner().invoke(check_data, [str(tmp_path / "repeat.yaml"), str(tmp_path / "school.parquet")])
    assert "it can be used as it is" in looked.output
    (tmp_path / "broken.parquet").write_text("no Parquet")
    with pytest.raises(DataError, match="no Parquet file"):
        propose("repeat", tmp_path / "broken.parquet")


def test_a_column_that_names_images_is_an_image_of_their_shape(tmp_path: Path) -> None:
    for row in range(30):
        Image.new("RGB", (6, 4) if row else (5, 5), (row, 0, 0)).save(tmp_path / f"leaf{row}.png")
    rows = "".join(f"leaf{row}.png,{row % 2}\n" for row in range(30))
    (tmp_path / "leaves.csv").write_text(f"scan,ill\n{rows}gone.png,1\n")
    proposal = propose("leaves", tmp_path / "leaves.csv", ["ill"], person="row")
    task = task_from_text(proposal.text)
    assert [(column.kind, column.shape) for column in task.schema.inputs] == [("image", (3, 4, 6))]
    assert task.file is not None and task.file.model.family == "cnn" and all(check.held for check in conform(task))
    told = "\n".join(proposal.told)
    assert "'scan': 1 of 30 images looked at have another size or colours" in told
    assert "'scan': 1 of the images looked at are missing" in told
    assert "leaf" not in proposal.text.replace("name: leaves", "").replace("title: leaves", "") and "leaf3" not in told
    (tmp_path / "far").mkdir()
    (tmp_path / "leaves.csv").rename(tmp_path / "far" / "leaves.csv")
    with pytest.raises(ConfigError, match="'scan' cannot be learnt: it names images, and none of them lies beside"):
        propose("leaves", tmp_path / "far" / "leaves.csv", ["scan"])


def test_a_word_that_only_names_the_file_s_institution_is_no_input(tmp_path: Path) -> None:
    for site in ("north", "south"):
        clinic = _weights(tmp_path, site)
        lines = clinic.read_text().splitlines()
        clinic.write_text("\n".join([f"{lines[0]},clinic", *(f"{line},{site}" for line in lines[1:])]))
    proposal = propose("ward", [tmp_path], ["ill"])
    assert [column.name for column in task_from_text(proposal.text).schema.inputs] == ["age", "weight"]
    assert any(line.startswith("left out: 'clinic': one word in each file") for line in proposal.told)


def _site(folder: Path, site: str, outcomes: tuple[str, str], sexes: tuple[str, ...], rows: int = 80) -> Path:
    """Made-up persons: age, sex, stay (days, by age), discharged to where after the outcome, and the outcome."""
    draw = random.Random(site)
    lines = ["age,sex,stay,after,outcome"]
    for row in range(rows):
        ill = draw.random() < 0.4
        age = draw.randint(18, 95)
        sex = sexes[row % len(sexes)]
        after = draw.choice(["home", "home", "ward"]) if not ill else "grave"
        lines.append(f"{age},{sex},{age / 3 + draw.gauss(0, 8):.1f},{after},{outcomes[ill]}")
    path = folder / f"{site}.csv"
    path.write_text("\n".join(lines))
    return path


def test_files_that_write_a_word_differently_are_named_and_not_guessed_at(tmp_path: Path) -> None:
    """A clinic with codes 0/1 and 1/2 among three with words: one set of words, of which all but that one read."""
    files = [_site(tmp_path, site, ("no", "yes"), ("F", "M")) for site in ("east", "north")]
    files += [_site(tmp_path, "south", ("No", "YES"), ("f", "m")), _site(tmp_path, "west", ("0", "1"), ("1", "2"), 900)]
    proposal = propose("ward", files, ["outcome"])
    task = task_from_text(proposal.text)
    assert task.file is not None and task.file.target.classes == ("no", "yes")
    columns = {column.name: column for column in task.schema.columns}
    assert columns["sex"].categories == ("F", "M")
    outcome, sex = (next(line for line in proposal.told if line.startswith(f"'{name}'")) for name in ("outcome", "sex"))
    assert outcome.startswith(
        "'outcome': west.csv says 0, 1 where the others say no, yes: which is which is not guessed"
    )
    assert "Write beside it west.yaml" in sex and 'columns: {sex: {values: {"1": …, "2": …}}}' in sex
    (tmp_path / "ward.yaml").write_text(proposal.text)
    for file in files[:3]:
        assert CliRunner().invoke(check_data, [str(tmp_path / "ward.yaml"), str(file)]).exit_code == 0
    mapping = 'columns: {outcome: {values: {"0": "no", "1": "yes"}}, sex: {values: {"1": F, "2": M}}}'
    (tmp_path / "west-words.yml").write_text(mapping)
    (tmp_path / "west.yaml").write_text("data: {mapping: west-words.yml}")
    looked = CliRunner().invoke(check_data, [str(tmp_path / "ward.yaml"), str(files[3])])
    assert looked.exit_code == 0, looked.output


def test_most_files_decide_which_words_are_a_class_s(tmp_path: Path) -> None:
    files = [_site(tmp_path, site, ("0", "1"), ("F", "M")) for site in ("a", "b")]
    proposal = propose("ward", [*files, _site(tmp_path, "c", ("nein", "ja"), ("F", "d", "M"))], ["outcome"])
    file = task_from_text(proposal.text).file
    assert file is not None and file.target.classes == ("0", "1")
    assert any(line.startswith("'outcome': c.csv says ja, nein where the others say 0, 1") for line in proposal.told)
    assert {column.name: column for column in file.columns}["sex"].categories == ("F", "M", "d")


def test_a_column_that_tells_the_target_nearly_alone_is_named(tmp_path: Path) -> None:
    clinic = _site(tmp_path, "east", ("no", "yes"), ("F", "M"), 200)
    lines = clinic.read_text().splitlines()
    copied = [f"{line},{10 * float(line.split(',')[2]) + row % 2:.1f}" for row, line in enumerate(lines[1:])]
    clinic.write_text("\n".join([f"{lines[0]},cost", *copied]))
    told = propose("ward", clinic, ["outcome"]).told
    assert [line for line in told if "nearly alone" in line] == [
        "'after' tells 'outcome' nearly alone (AUC 1.00): is it known beforehand?"
    ]
    told = propose("ward", clinic, ["stay"]).told
    assert [line for line in told if "nearly alone" in line] == [
        "'cost' tells 'stay' nearly alone (correlation 1.00): is it known beforehand?"
    ]


def test_training_is_proposed_whose_rate_falls_to_nothing(tmp_path: Path) -> None:
    clinic = _site(tmp_path, "east", ("no", "yes"), ("F", "M"))
    assert task_from_text(propose("ward", clinic, ["outcome"]).text).training == {
        "learning_rate": 0.1, "batch_size": 32, "local_epochs": 1, "schedule": "wsd",
    }  # fmt: skip
    assert task_from_text(propose("ward", clinic, ["stay"]).text).training == {
        "learning_rate": 0.05, "batch_size": 32, "local_epochs": 1, "schedule": "wsd", "cooldown": 0.5,
    }  # fmt: skip


def test_a_number_with_a_long_tail_is_proposed_by_its_logarithm() -> None:
    draw = np.random.default_rng(4)
    long, even = np.exp(draw.normal(6, 1.2, 300)), draw.normal(120, 15, 300)
    for values, scaling in ((long, "log"), (even, None), (even - 130, None), (long[:20], None)):
        seen = look("bnp", [f"{value:.2f}" for value in values], ".")
        assert seen.kind == "number" and seen.values.get("scaling") == scaling
        assert ("a long tail" in seen.note) == (scaling is not None)


def test_a_word_of_few_records_is_asked_about_since_the_file_goes_to_everybody() -> None:
    wards = ["A", "B", "b "] * 30
    assert look("ward", wards, ".").note == "to be confirmed: are these all the words?"
    note = look("ward", [*wards, "mayor Schmidt", "C", "C"], ".").note
    assert note.endswith("all the words? 2 in fewer than 5 records here: none about a person?")


@pytest.mark.parametrize(
    ("days", "settings", "told"),
    [
        (("13/02/2024", "02/11/2024", "05/06/2025"), ("data.date_format=%d/%m/%Y",), False),
        (("02/13/2024", "11/02/2024", "06/05/2025"), ("data.date_format=%m/%d/%Y",), False),
        (("02/11/2024", "05/06/2025", "11/02/2024"), ("data.date_format=%d/%m/%Y",), True),
        (("2024-02-13", "13.02.2024", "2024-11-02"), ("data.date_format=%d.%m.%Y",), False),
    ],
)
def test_days_with_slashes_are_days_and_say_how_they_are_read(
    tmp_path: Path, days: tuple[str, ...], settings: tuple[str, ...], told: bool
) -> None:
    """Seen: days of a British export were left out as free text."""
    path = tmp_path / "clinic.csv"
    path.write_text("seen,ill\n" + "".join(f"{days[row % 3]},{row % 2}\n" for row in range(30)))
    proposal = propose("visits", path, ["ill"])
    (column,) = [column for column in task_from_text(proposal.text).schema.columns if column.name == "seen"]
    assert (column.kind, proposal.settings) == ("date", settings)
    assert any("either day" in line for line in proposal.told) is told


def test_numbers_that_may_be_excel_s_days_are_told_with_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "clinic.csv"
    path.write_text("seen,ward,ill\n" + "".join(f"{45_600 + 7 * row},{row},{row % 2}\n" for row in range(40)))
    proposal = propose("visits", path, ["ill"])
    lines = [line for line in proposal.told if "Excel" in line]
    assert len(lines) == 1 and lines[0].startswith("'seen'") and "data.date_format=excel" in lines[0]
    assert '{kind: date, low: "2020-01-01", high: "2029-12-31"}' in lines[0]


def test_a_column_that_some_files_call_otherwise_names_those_files(tmp_path: Path) -> None:
    """Seen: "no column 'ill' (known: none)"."""
    (tmp_path / "a.csv").write_text("age,ill\n1,0\n2,1\n3,0\n")
    (tmp_path / "b.csv").write_text("Alter;krank\n1;0\n2;1\n3;0\n")
    with pytest.raises(ConfigError, match=r"b\.csv: no column 'ill', .*data\.mapping.*'Alter', 'krank'"):
        propose("visits", tmp_path, ["ill"])


OWN = {
    "bonn": ("Alter;Fieber;Aufnahme;Ankunft;krank", "{age};{c:.1f};{day:%d.%m.%Y};{word};{ill}", ("-99", "ja", "nein")),
    "leeds": ("age,temp,seen,arrival,ill", "{age},{f:.1f},{day:%d/%m/%Y},{word},{ill}", ("unknown", "yes", "no")),
    "sendai": ("Alter,Fieber,Aufnahme,Ankunft,krank", "{age},{c:.1f},{day:%Y/%m/%d},{word},{ill}", ("不明", "1", "0")),
}
SETTINGS = {
    "bonn": 'data: {date_format: "%d.%m.%Y", missing_words: [-99]}',
    "leeds": 'data: {date_format: "%d/%m/%Y", missing_words: [unknown], mapping: leeds.yml}',
    "sendai": 'data: {date_format: "%Y/%m/%d", missing_words: [不明], mapping: sendai.yml}',
}
MAPPINGS = {
    "leeds": "columns: {Alter: age, Fieber: {name: temp, multiply: 0.5555555556, add: -17.7777777778}, Aufnahme: seen, "
    'Ankunft: {name: arrival, values: {walk: Fuß, car: Wagen}}, krank: {name: ill, values: {"yes": ja, "no": nein}}}',
    "sendai": 'columns: {krank: {values: {"1": ja, "0": nein}}}',
}


def _own_tables(folder: Path, settings: bool) -> Path:
    """Three tables of the same things in other letters, units, words and days, with what says so beside them."""
    folder.mkdir()
    draw = random.Random(3)
    for site, (head, line, (gap, yes, no)) in OWN.items():
        lines = [head]
        for row in range(90):
            words = ["walk", "car"] if site == "leeds" else ["Fuß", "Wagen"]
            celsius = draw.uniform(35.5, 39.9)
            told = line.format(
                age=draw.randint(20, 80), c=celsius, f=celsius * 1.8 + 32, word=gap if row % 9 == 0 else words[row % 2],
                day=datetime.date(2024, 1, 1) + datetime.timedelta(draw.randint(0, 600)), ill=draw.choice([yes, no]),
            )  # fmt: skip
            lines.append(told.replace(".", ",", 1) if site == "bonn" else told)
        (folder / f"{site}.csv").write_text("\n".join(lines))
        if settings:
            (folder / f"{site}.yaml").write_text(SETTINGS[site])
            if site in MAPPINGS:
                (folder / f"{site}.yml").write_text(MAPPINGS[site])
    return folder


def test_tables_are_looked_at_as_the_settings_beside_them_say(tmp_path: Path) -> None:
    """As check-data, join and a simulation read them: so what is proposed fits every table as it is."""
    folder = _own_tables(tmp_path / "own", settings=True)
    proposal = propose("fever", folder, ["krank"], person="row")
    file = task_from_text(proposal.text).file
    assert file is not None and file.target.classes == ("nein", "ja")
    columns = {column.name: column for column in file.columns}
    assert list(columns) == ["Alter", "Fieber", "Aufnahme", "Ankunft"]
    assert columns["Fieber"].high == 50 and columns["Aufnahme"].kind == "date"
    assert (columns["Ankunft"].categories, columns["Ankunft"].missing) == (("Fuß", "Wagen"), "category")
    assert not any("another unit" in line or "left out" in line for line in proposal.told) and not proposal.settings
    assert any(line.startswith("leeds.csv: 90 records;") and "settings in leeds.yaml" in line for line in proposal.told)
    (tmp_path / "fever.yaml").write_text(proposal.text)
    for site in OWN:
        looked = CliRunner().invoke(check_data, [str(tmp_path / "fever.yaml"), str(folder / f"{site}.csv")])
        assert looked.exit_code == 0 and "it can be used as it is" in looked.output, looked.output


def test_days_that_files_write_in_different_ways_are_days_and_each_file_s_setting_is_told(tmp_path: Path) -> None:
    folder = _own_tables(tmp_path / "own", settings=False)
    proposal = propose("fever", [folder / "bonn.csv", folder / "sendai.csv"], ["krank"], person="row")
    told = [line for line in proposal.told if line.startswith("'Aufnahme'")]
    assert told == [
        "'Aufnahme': for bonn.csv write beside it bonn.yaml: 'data: {date_format: \"%d.%m.%Y\"}'",
        "'Aufnahme': for sendai.csv write beside it sendai.yaml: 'data: {date_format: \"%Y/%m/%d\"}'",
    ]
    assert "Aufnahme: {kind: date" in proposal.text and not any("date_format" in need for need in proposal.settings)


@pytest.mark.parametrize(
    ("cell", "form"),
    [
        ("2024/07/{:02d}", "%Y/%m/%d"), ("2024/7/{}", "%Y/%m/%d"), ("2024.07.{:02d}", "%Y.%m.%d"),
        ("2024-7-{}", "%Y-%m-%d"), ("2024/07/{:02d} 09:15", "%Y/%m/%d %H:%M"),
        ("{:02d}.07.2024 09:15:20", "%d.%m.%Y %H:%M:%S"), ("2024-07-{:02d}T09:15", ""),
    ],
)  # fmt: skip
def test_days_are_read_as_their_form_says(cell: str, form: str) -> None:
    """As records are, later: `Rules` has the last word."""
    cells = [cell.format(day) for day in range(1, 29)]
    seen = look("seen", cells, ".")
    assert seen.kind == "date" and seen.needs == ((f"data.date_format={form}",) if form else ())
    assert all(not Rules(date_format=form).day(own)[1] for own in cells)
