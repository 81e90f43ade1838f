"""Institutions whose tables are written in different ways are simulated together; what is wrong is told once."""

from __future__ import annotations

import datetime
import logging
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import sovfed
from sovfed.federation.errors import ConfigError, DataError, PrivacyError
from sovfed.simulations.cli import simulate as command

if TYPE_CHECKING:
    from pathlib import Path

TASK = """format: 1
name: hip
version: "1"
title: hip
person: patient
columns:
  age: {kind: number, low: 0, high: 120}
  admission: {kind: date, low: "2010-01-01", high: "2029-12-31"}
  ward: {kind: category, categories: [Ä, B]}
target: {kind: binary, column: outcome, classes: ["no", "yes"]}
model: {family: linear}
"""
OWN = {
    "ahorn": (",", "%Y-%m-%d", "utf-8", "Ä"), "birke": (";", "%d.%m.%Y", "cp1252", "Ä"),
    "eiche": (",", "%Y-%m-%d", "utf-8", "Station A"),
}  # fmt: skip


@pytest.fixture
def clinics(tmp_path: Path) -> Path:
    """A task, and three clinics' tables, each in its own way."""
    (tmp_path / "hip.yaml").write_text(TASK)
    folder = tmp_path / "clinics"
    folder.mkdir()
    for name, (mark, days, encoding, ward) in OWN.items():
        lines = [mark.join(["patient", "age", "admission", "ward", "outcome"])]
        for number in range(60):
            day = datetime.date(2020, 1, 1) + datetime.timedelta(days=number)
            word = ward if number % 3 else "B"
            answer = "yes" if number % 2 else "no"
            lines.append(mark.join([f"{name}{number}", str(40 + number % 50), day.strftime(days), word, answer]))
        (folder / f"{name}.csv").write_bytes("\n".join([*lines, ""]).encode(encoding))
    return tmp_path


def declare(clinics: Path) -> None:
    folder = clinics / "clinics"
    (folder / "birke.yaml").write_text('data: {date_format: "%d.%m.%Y", encoding: cp1252}')
    (folder / "eiche.yaml").write_text("data: {mapping: words.yml}")
    (folder / "words.yml").write_text("columns: {ward: {values: {Station A: Ä}}}")


def test_each_institution_has_its_own_settings_beside_its_table(clinics: Path) -> None:
    declare(clinics)
    result = sovfed.simulate(clinics / "hip.yaml", clinics / "clinics", rounds=2)
    assert [row["institution"] for row in result.baselines.rows] == list(OWN)
    assert len(repr(result)) < 400 and "3 institutions" in repr(result)
    assert result.folder.is_dir()


def test_every_institutions_fault_is_told_once_and_no_folder_is_left(
    clinics: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clinics)
    before = sorted(clinics.iterdir())
    with caplog.at_level(logging.WARNING):
        result = CliRunner().invoke(command, [f"task={clinics / 'hip.yaml'}", f"data.path={clinics / 'clinics'}"])
    assert isinstance(result.exception, DataError)
    told = str(result.exception)
    for said in ("2 of 3", "birke.csv", "data.date_format", "eiche.csv", "data.mapping", "birke.yaml"):
        assert said in told
    assert "ahorn" not in told
    assert not [record for record in caplog.records if record.exc_info]
    assert sorted(clinics.iterdir()) == before


def test_a_private_simulation_names_the_file_that_lacks_a_declaration(clinics: Path) -> None:
    with pytest.raises(PrivacyError, match=r"birke\.csv.*data.encoding=cp1252"):
        sovfed.simulate(
            clinics / "hip.yaml", clinics / "clinics", privacy="distributed", settings={"privacy.population": 100}
        )


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("ahorn", "data: {encodin: x}", "did you mean 'encoding'"),
        ("ahorn", "encoding: x", "expected 'data:' alone"),
        ("ahorn", "data: {site: x}", "that is the simulation's"),
        ("ahor", "data: {encoding: x}", "no table of an institution 'ahor'.*'ahorn'"),
    ],
)
def test_settings_of_nobody_or_of_nothing_are_refused(clinics: Path, name: str, text: str, told: str) -> None:
    (clinics / "clinics" / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        sovfed.simulate(clinics / "hip.yaml", clinics / "clinics", rounds=1)


def test_a_finished_run_is_not_written_over(clinics: Path) -> None:
    (clinics / "run").mkdir()
    (clinics / "run" / "model.safetensors").write_text("mine")
    arguments = [f"task={clinics / 'hip.yaml'}", f"data.path={clinics / 'clinics'}", "--folder", str(clinics / "run")]
    declare(clinics)
    assert "is not empty" in str(CliRunner().invoke(command, arguments).exception)
    with pytest.raises(ConfigError, match="is not empty"):
        sovfed.simulate(clinics / "hip.yaml", clinics / "clinics", folder=clinics / "run")
    assert (clinics / "run" / "model.safetensors").read_text() == "mine"


def test_a_path_that_is_not_there_is_said_so(clinics: Path) -> None:
    with pytest.raises(DataError, match=r"sam: no such file or folder"):
        sovfed.simulate(clinics / "hip.yaml", clinics / "sam", rounds=1)


def test_a_folder_of_parquet_files_needs_no_word_and_a_task_may_lie_beside_a_table(tmp_path: Path) -> None:
    clinics = tmp_path / "clinics"
    clinics.mkdir()
    for number, name in enumerate(("hip", "knee", "hand")):
        ages = [40 + (number + row) % 50 for row in range(60)]
        table = {"age": ages, "patient": [f"{name}{row}" for row in range(60)]}
        outcome = ["yes" if age > 60 else "no" for age in ages]
        pq.write_table(pa.table({**table, "outcome": outcome}), clinics / f"{name}.parquet")
    lines = [line for line in TASK.splitlines() if "admission" not in line and "ward" not in line]
    (clinics / "hip.yaml").write_text("\n".join(lines))  # not the settings of hip.parquet
    result = sovfed.simulate(clinics / "hip.yaml", clinics, rounds=1)
    assert (result.config.data.source, len(result.population)) == ("parquet", 3)


def test_one_table_for_several_institutions_is_told_how_to_cut_it_up(clinics: Path) -> None:
    declare(clinics)
    alone = clinics / "alone"
    alone.mkdir()
    (clinics / "clinics" / "ahorn.csv").rename(alone / "ahorn.csv")
    with pytest.raises(ConfigError, match=r"^1 institution a round; .* partition=iid or data\.site_column"):
        sovfed.simulate(clinics / "hip.yaml", alone, rounds=1)


@pytest.mark.parametrize(
    "engine", [["simulation.workers=0"], ["simulation.workers=2"], ["simulation.engine=vectorised"]], ids=str
)
def test_every_engine_ends_at_once_with_what_is_wrong(
    clinics: Path, caplog: pytest.LogCaptureFixture, engine: list[str]
) -> None:
    with pytest.raises(DataError, match=r"2 of 3 institutions .*\n.*birke\.csv.*\n.*eiche\.csv"):
        sovfed.simulate(clinics / "hip.yaml", clinics / "clinics", rounds=2, settings=[*engine, "secagg=none"])
    assert "attempt" not in caplog.text
