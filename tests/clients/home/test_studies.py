"""Several studies on one node: each task reads its own study's records, and is told of before a run asks."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.clients.data.cases import AGE, DOSE, ILL, task_of

from sovfed.clients.cli.institution import cli
from sovfed.clients.home import looked
from sovfed.clients.home.folder import create, load_config, private_obstacles
from sovfed.clients.home.looked import data_findings
from sovfed.clients.home.policy import Policy
from sovfed.clients.home.settings import settings_text
from sovfed.clients.home.studies import add_study, remove_study
from sovfed.clients.trainer.process import with_bad_rows
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.config import ClientConfig, DataConfig, StudyConfig
from sovfed.federation.errors import ConfigError, WrongTaskError
from sovfed.federation.schema import bind
from sovfed.federation.tasks import registry


def one_input() -> torch.nn.Module:
    return torch.nn.Linear(1, 1)


def two_inputs() -> torch.nn.Module:
    return torch.nn.Linear(2, 1)


FIRST = dataclasses.replace(task_of(AGE, ILL), name="study-first", build=one_input)
LATER = dataclasses.replace(task_of(AGE, DOSE, ILL), name="study-first", build=two_inputs)
OTHER = dataclasses.replace(task_of(DOSE, ILL), name="study-other", build=one_input)


@pytest.fixture(autouse=True)
def known() -> None:
    registry.add(FIRST)
    registry.add(OTHER)


def at(path: str, **values: object) -> DataConfig:
    return dataclasses.replace(DataConfig(source="csv", path=path), **values)  # type: ignore[arg-type]


def config_of(**studies: StudyConfig) -> ClientConfig:
    return ClientConfig(device="cpu", data=at("/srv/rest.csv", site="rest"), studies=studies)


def test_a_task_reads_its_study_and_every_other_the_data_block() -> None:
    config = config_of(births=StudyConfig("study-first", at("/srv/births.csv")))
    assert config.data_of(FIRST).path == "/srv/births.csv" and config.study_of(FIRST) == "births"
    assert config.data_of(OTHER).path == "/srv/rest.csv" and config.study_of(OTHER) == "data"
    assert ClientConfig().data_of(FIRST) == DataConfig()


def test_a_study_of_one_version_comes_before_one_of_any() -> None:
    any_version, this = StudyConfig("study-first", at("/a")), StudyConfig(f"study-first@{FIRST.digest[:32]}", at("/b"))
    config = config_of(one=any_version, two=this)
    assert (config.data_of(FIRST).path, config.data_of(LATER).path) == ("/b", "/a")


def test_a_version_that_no_study_is_of_reads_nothing() -> None:
    """Rather than the data block's records, which are other people's."""
    config = config_of(births=StudyConfig(f"study-first@{FIRST.digest[:32]}", at("/b")))
    with pytest.raises(WrongTaskError, match=r"studies \['births'\] are of other versions"):
        config.data_of(LATER)


@pytest.mark.parametrize(
    "task",
    ["", "a b", "@0123456789abcdef0123456789abcdef", "birth@01", "birth@0123456789ABCDEF0123456789ABCDEF", "../birth"],
)
def test_a_study_names_a_task_or_a_version_of_one(task: str) -> None:
    with pytest.raises(ConfigError, match=r"births.*(expected NAME|length)"):
        bind(ClientConfig, {"studies": {"births": {"task": task}}})


@pytest.mark.parametrize("name", ["data", "", "a/b", "../a", "a b", "a\nb"])
def test_a_study_has_a_name_that_files_may_have(name: str) -> None:
    with pytest.raises(ConfigError, match="no name of a study"):
        bind(ClientConfig, {"studies": {name: {"task": "birth"}}})


@pytest.mark.parametrize(
    "second", ["birth@0123456789abcdef0123456789abcdef", "birth@0123456789abcdef0123456789abcdefcd"]
)
def test_no_two_studies_serve_one_task(second: str) -> None:
    studies = {
        "one": {"task": "birth@0123456789abcdef0123456789abcdef"},
        "two": {"task": second},
        "any": {"task": "birth"},
    }
    with pytest.raises(ConfigError, match="'one' and 'two' both serve"):
        bind(ClientConfig, {"studies": studies})


def test_studies_are_written_and_read_back(tmp_path: Path) -> None:
    studies = {
        "births": StudyConfig(
            "birth@0123456789abcdef0123456789abcdef", at("/srv/births.csv", missing_words=("k.A.", "-99"), site="007")
        ),
        "1e3": StudyConfig("stay", DataConfig()),
    }
    config = ClientConfig(studies=studies, data=at("/srv/rest.csv"))
    create(tmp_path / "home", config, Policy(("birth",)))
    assert load_config(tmp_path / "home") == dataclasses.replace(config, home=str(tmp_path / "home"))
    assert "studies: {}" in settings_text(ClientConfig(), "")


def test_paths_of_every_study_are_whole_from_the_home(tmp_path: Path) -> None:
    create(tmp_path / "home", config_of(a=StudyConfig("a", at("/srv/a.csv"))), Policy(("a",)))
    file = tmp_path / "home" / "client.yaml"
    file.write_text(file.read_text().replace("/srv/a.csv", "a.csv"))
    assert load_config(tmp_path / "home").studies["a"].data.path == str(tmp_path / "home" / "a.csv")


def table(path: Path, header: str, *rows: str) -> DataConfig:
    path.write_text("\n".join([header, *rows, ""]))
    return at(str(path), person="row", site=path.stem)


def test_the_trainer_reads_each_task_from_its_own_study(tmp_path: Path) -> None:
    rows = [f"{40 + row},{row % 2}" for row in range(30)]
    births = table(tmp_path / "births.csv", "age,ill", *rows)
    rest = table(tmp_path / "rest.csv", "dose,ill", *(f"{row / 10},{row % 2}" for row in range(12)))
    config = ClientConfig(device="cpu", data=rest, studies={"births": StudyConfig("study-first", births)})
    trainer = make_trainer(config)
    assert (len(trainer._source.load(FIRST).persons), len(trainer._source.load(OTHER).persons)) == (30, 12)
    assert (trainer._source.site_of(FIRST), trainer._source.site_of(OTHER)) == ("births", "rest")
    trainer._source.check_private(FIRST)


def test_bad_rows_of_each_study_are_listed_in_the_trainers_own_folder() -> None:
    given = at("/srv/b.csv", bad_rows_file="/srv/own")
    config = with_bad_rows(config_of(a=StudyConfig("a", at("/srv/a.csv")), b=StudyConfig("b", given)), Path("/h/run"))
    assert config.data.bad_rows_file == "/h/run/data.bad-rows"
    assert config.studies["a"].data.bad_rows_file == "/h/run/a.bad-rows"
    assert config.studies["b"].data.bad_rows_file == "/srv/own"


def test_private_obstacles_are_those_of_each_tasks_study(tmp_path: Path) -> None:
    config = ClientConfig(
        home=str(tmp_path),
        data=table(tmp_path / "rest.csv", "dose,ill", "1,1"),
        studies={"births": StudyConfig("study-first", at(str(tmp_path / "births.csv"), limit=3))},
    )
    (tmp_path / "births.csv").write_text("age,ill\n40,1\n")
    policy = Policy(("study-first", "study-other"))
    (line,) = private_obstacles(config, policy)
    assert "data.limit" in line
    assert not private_obstacles(config, Policy(("study-other",)))


def faulty(tmp_path: Path) -> ClientConfig:
    births = table(tmp_path / "births.csv", "age,ill", *[f"{40 + row},{row % 2}" for row in range(20)], "secret,1")
    rest = table(tmp_path / "rest.csv", "wrong,ill", "4321,1")
    return ClientConfig(home=str(tmp_path), data=rest, studies={"births": StudyConfig("study-first", births)})


def test_findings_name_study_column_count_and_fix_and_no_value(tmp_path: Path) -> None:
    lines = data_findings(faulty(tmp_path), Policy(("study-first", "study-other", "not-installed")))
    assert "study births, task study-first: column 'age': 1 value is no number (line 22)" in "\n".join(lines)
    assert any(line.startswith("data, task study-other: the records cannot be used") for line in lines)
    assert any("'dose'" in line for line in lines)
    assert not any("secret" in line or "4321" in line for line in lines)
    only = data_findings(faulty(tmp_path), Policy(("study-first", "study-other")), "data")
    assert only and all(line.startswith("data, ") for line in only)


def test_sound_records_give_no_line(tmp_path: Path) -> None:
    births = table(tmp_path / "births.csv", "age,ill", *[f"{40 + row},{row % 2}" for row in range(20)])
    config = ClientConfig(home=str(tmp_path), studies={"births": StudyConfig("study-first", births)})
    assert data_findings(config, Policy(("study-first",))) == []


def test_rows_that_the_declared_rule_leaves_out_are_told_and_are_no_warning(tmp_path: Path) -> None:
    births = table(tmp_path / "births.csv", "age,ill", "x,1", *[f"{40 + row},{row % 2}" for row in range(20)])
    births = dataclasses.replace(births, bad_rows="quarantine", max_bad_share=0.1)
    config = ClientConfig(home=str(tmp_path), studies={"births": StudyConfig("study-first", births)})
    findings = list(looked.records_findings(config, Policy(("study-first",))))
    assert [finding.state for finding in findings] == ["ok", "ok"]
    assert "left out, as data.bad_rows says: column 'age': 1 value is no number (line 2)" in findings[1].found
    assert data_findings(config, Policy(("study-first",))) == []


def test_what_would_fill_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked, "MOST_BYTES", 10)
    (line,) = data_findings(faulty(tmp_path), Policy(("study-first",)))
    assert "more than" in line and "check-data" in line


def test_what_takes_long_is_given_up_and_the_next_study_is_looked_at(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A table that never ends: a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "births.csv")
    rest = table(tmp_path / "rest.csv", "dose,ill", *(f"{row / 10},{row % 2}" for row in range(12)))
    births = at(str(tmp_path / "births.csv"))
    config = ClientConfig(home=str(tmp_path), data=rest, studies={"births": StudyConfig("study-first", births)})
    found = list(looked.records_findings(config, Policy(("study-first", "study-other")), seconds=3.0))
    assert [finding.state for finding in found] in (["warn", "ok"], ["fail", "ok"])
    assert "12 rows, 12 persons" in found[1].found
    if found[0].state == "warn":
        assert "not read to the end within 3 s" in found[0].found
        assert "study births, task study-first: reading the records: 2 s of at most 3" in capfd.readouterr().err


def test_doctor_reads_the_records_of_every_study(tmp_path: Path) -> None:
    from sovfed.clients.cli.doctor import doctor

    home = tmp_path / "home"
    config = faulty(tmp_path)
    create(home, config, Policy(("study-first", "study-other"), require_privacy=False))
    result = CliRunner().invoke(doctor, ["--json", "--home", str(home)])
    found = [one for one in json.loads(result.stdout) if one["name"] == "records"]
    assert result.exit_code == 1 and {one["state"] for one in found} == {"fail"}
    assert any("study births, task study-first: column 'age': 1 value is no number" in one["found"] for one in found)
    assert "secret" not in result.output and "4321" not in result.output
    table(tmp_path / "births.csv", "age,ill", *[f"{40 + row},{row % 2}" for row in range(20)])
    table(tmp_path / "rest.csv", "dose,ill", *(f"{row / 10},{row % 2}" for row in range(12)))
    result = CliRunner().invoke(doctor, ["--home", str(home)])
    assert "study births, task study-first: 20 rows, 20 persons" in result.output
    (home / "policy.yaml").write_text("allowed_tasks: 3\n")
    (home / "policy.yaml").chmod(0o600)
    assert "allowed_tasks" in CliRunner().invoke(doctor, ["--home", str(home)]).output


def home_of(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    create(home, ClientConfig(device="cpu"), Policy(("breast_cancer",)))
    return home


def test_a_study_is_added_beside_what_stands_in_the_file(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    file = home / "client.yaml"
    file.write_text(file.read_text() + "# a remark of the operator's\n")
    first = add_study(home, "births", "study-first", at("/srv/a.csv", missing_words=("k.A.",)))
    second = add_study(home, "stays", f"study-other@{OTHER.digest[:32]}", at("/srv/b.csv"))
    assert set(first.studies) == {"births"} and set(second.studies) == {"births", "stays"}
    assert second.studies["births"] == StudyConfig("study-first", at("/srv/a.csv", missing_words=("k.A.",)))
    text = file.read_text()
    assert "# a remark of the operator's" in text and text.count("# the data connector") == 1
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "task", "told"),
    [("births", "other", "is there already"), ("more", "study-first", "both serve"), ("data", "other", "no name")],
)
def test_a_study_that_does_not_fit_beside_the_others_is_refused(
    tmp_path: Path, name: str, task: str, told: str
) -> None:
    home = home_of(tmp_path)
    add_study(home, "births", "study-first", at("/srv/a.csv"))
    before = (home / "client.yaml").read_text()
    with pytest.raises(ConfigError, match=told):
        add_study(home, name, task, at("/srv/b.csv"))
    assert (home / "client.yaml").read_text() == before


def test_a_file_that_is_written_in_another_way_is_left_and_the_lines_are_told(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    file = home / "client.yaml"
    inline = file.read_text().replace("studies: {}", 'studies: {"births": {"task": "study-first"}}')
    file.write_text(inline)
    with pytest.raises(ConfigError, match='add there by hand\n  "stays":\n    task: "study-other"'):
        add_study(home, "stays", "study-other", at("/srv/b.csv"))
    assert file.read_text() == inline


def test_a_home_from_before_there_were_studies_gets_one(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    file = home / "client.yaml"
    old = [line for line in file.read_text().splitlines() if not line.startswith("studies")]
    file.write_text("\n".join(old) + "\n")
    assert load_config(home).studies == {}
    assert set(add_study(home, "births", "study-first", at("/srv/a.csv")).studies) == {"births"}


def test_a_study_is_removed_and_what_stands_beside_it_stays(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    file = home / "client.yaml"
    before = file.read_text()
    add_study(home, "births", "study-first", at("/srv/a.csv", missing_words=("k.A.",)))
    add_study(home, "stays", "study-other", at("/srv/b.csv"))
    file.write_text(file.read_text() + "# a remark of the operator's\n")
    assert remove_study(home, "births").task == "study-first"
    assert set(load_config(home).studies) == {"stays"} and "# a remark of the operator's" in file.read_text()
    remove_study(home, "stays")
    assert file.read_text() == f"{before.rstrip()}\n# a remark of the operator's\n"
    assert set(add_study(home, "births", "study-first", at("/srv/a.csv")).studies) == {"births"}


def test_a_study_that_is_not_there_or_not_in_its_own_lines_is_left(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    file = home / "client.yaml"
    file.write_text(file.read_text().replace("studies: {}", 'studies: {"births": {"task": "study-first"}}'))
    before = file.read_text()
    with pytest.raises(ConfigError, match=r"no study 'birth' \(did you mean 'births'"):
        remove_study(home, "birth")
    with pytest.raises(ConfigError, match="take it out by hand"):
        remove_study(home, "births")
    assert file.read_text() == before


def test_the_commands_add_list_remove_and_check(tmp_path: Path) -> None:
    home = home_of(tmp_path)
    table(tmp_path / "births.csv", "age,ill", *[f"{40 + row},{row % 2}" for row in range(20)], "secret,1")
    words = ["study", "add", "births", "--task", "study-first", "--home", str(home), "data=csv"]
    data = [f"data.path={tmp_path / 'births.csv'}", "data.person=row"]
    result = CliRunner().invoke(cli, [*words, "--allow", *data])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "policy.yaml now allows study-first" in result.output
    assert "column 'age': 1 value is no number" in result.output and "secret" not in result.output
    result = CliRunner().invoke(cli, ["study", "list", "--home", str(home)])
    assert f"births  study-first  allowed  csv {tmp_path / 'births.csv'}" in result.output
    assert "data    every other task  breast_cancer (built in)" in result.output
    result = CliRunner().invoke(cli, ["study", "check", "--home", str(home)])
    assert result.exit_code == 1 and "study births, task study-first: " in result.output
    table(tmp_path / "births.csv", "age,ill", *[f"{40 + row},{row % 2}" for row in range(20)])
    result = CliRunner().invoke(cli, ["study", "check", "--home", str(home)])
    assert result.exit_code == 0 and "can be used" in result.output
    assert json.dumps("study-first") in (home / "policy.yaml").read_text()
    assert CliRunner().invoke(cli, [*words, "rounds=3"]).exit_code == 2


def test_a_study_of_a_file_alone_is_read_by_what_the_file_is(tmp_path: Path) -> None:
    """Seen: without `data=` it was the source of the task that a run has by default, of another data set."""
    home = home_of(tmp_path)
    table(tmp_path / "births.csv", "age,ill", *[f"{40 + row},{row % 2}" for row in range(20)])
    words = ["study", "add", "births", "--task", "study-first", "--home", str(home), "--allow"]
    result = CliRunner().invoke(cli, [*words, f"data.path={tmp_path / 'births.csv'}", "data.person=row"])
    assert result.exit_code == 0 and "column" not in result.output, (result.output, result.exception)
    assert load_config(home).studies["births"].data.source == "csv"
    result = CliRunner().invoke(cli, [*words[:2], "none", *words[3:]])
    assert result.exit_code != 0 and "which records?" in str(result.exception)
    result = CliRunner().invoke(cli, ["study", "remove", "births", "--home", str(home)])
    assert result.exit_code == 0 and "policy.yaml still allows study-first" in result.output, result.output
    assert "births" not in CliRunner().invoke(cli, ["study", "list", "--home", str(home)]).output
