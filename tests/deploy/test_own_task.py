"""A consortium's own table and task.yaml, with real processes: allowed by digest, trained in the clear and privately,
used on a new table; a changed word is refused."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner
from safetensors.numpy import load_file
from tests.deploy.conftest import finished, make_config, make_federation, summary, wait_for_run
from tests.packages import NET, make_signer, write_wheel

from sovfed.cli import cli
from sovfed.clients.cli.use import cli as model
from sovfed.clients.home.own_tasks import allow_task, keep_task
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.signing import REVIEWER
from sovfed.federation.compose import compose
from sovfed.federation.tasks.tokenizer import read_tokenizer, train_tokenizer
from sovfed.server import own_tasks
from sovfed.server.runs import folders
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
hugging_face: Any = transformers
TASK = """\
name: birth
title: Preterm birth
person: patient_id
columns:
  age: {kind: number, low: 10, high: 60, unit: years}
  bmi: {kind: number, low: 10, high: 70}
  smoker: {kind: boolean}
  parity: {kind: category, categories: [none, one, more], missing: category}
  glucose: {kind: number, low: 0, high: 400, unit: mg/dl, missing: mean, indicator: true}
target: {kind: binary, column: outcome, classes: [term, preterm]}
model: {family: mlp, hidden: [8]}
training: {learning_rate: 0.1, momentum: 0.9, batch_size: 16}
"""
HEADS = TASK.replace("name: birth", "name: birth_heads").replace("[8]}", "[8], personal: head}")
NOTES = """\
name: notes
title: Notes
person: document
columns:
  window: {{kind: tokens, shape: [17], high: 299}}
target: {{kind: next_token, tokenizer: "{}"}}
model: {{family: decoder, width: 16, blocks: 1, heads: 2, hidden: 32}}
"""
PACKAGE = """
from wardnet.net import Net
from sovfed.task import Schema, Task, losses, metrics, number, target

TASK = Task(
    name="sepsis", title="Preterm birth, by a net of one's own",
    schema=Schema(
        (number("age", 10, 60), number("bmi", 10, 70), target("outcome", "term", "preterm")), person="patient_id"
    ),
    build=lambda: Net(8), loss=losses.binary_cross_entropy, metrics=metrics.BinaryMetrics(), headline="auc",
    personal=lambda name: name.startswith("out."),
)
"""
HEADER = ("patient_id", "Age", "bmi", "smoker", "parity", "glucose", "outcome")


def rows(site: str, count: int) -> Iterator[list[str]]:
    """Made-up pregnancies; every tenth without a glucose value."""
    drawn = random.Random(site)
    for number in range(count):
        age, bmi, glucose = drawn.gauss(31, 6), drawn.gauss(26, 5), drawn.gauss(95, 15)
        smoker, parity = drawn.random() < 0.2, drawn.choice(["none", "one", "more", ""])
        risk = 0.2 * (age - 31) + 0.3 * (bmi - 26) + 2 * smoker + 0.05 * (glucose - 95) + drawn.gauss(0, 0.5)
        yield [
            f"{site}-{number:03d}", f"{min(59, max(11, age)):.1f}", f"{max(11, bmi):.1f}", "yes" if smoker else "no",
            parity, "" if number % 10 == 0 else f"{glucose:.0f}", "preterm" if risk > 0 else "term",
        ]  # fmt: skip


def table(site: str, count: int) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([HEADER, *rows(site, count)])
    return text.getvalue()


def documents(site: str, count: int) -> list[str]:
    """Made-up notes in two languages, no two alike."""
    return [
        f"{site}: Patientin {number}, Woche {number % 40}。第{number}条 経過は良好である。\n" for number in range(count)
    ]


@pytest.fixture(scope="module")
def clinics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with task.yaml and a table for each of four clinics."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "birth.yaml").write_text(TASK)
    (folder / "heads.yaml").write_text(HEADS)
    (folder / "tokenizer.json").write_bytes(train_tokenizer(documents("public", 40), 300))
    (folder / "notes.yaml").write_text(NOTES.format(read_tokenizer(folder / "tokenizer.json").sha256))
    make_base(folder / "base")
    sovfed(
        "task", "language", "adapted", "--base", folder / "base", "--tokenizer", folder / "tokenizer.json", "--context",
        "16", "--output", folder / "adapted.yaml",
    )  # fmt: skip
    (folder / "clinics").mkdir()
    for site, count in (("north", 200), ("south", 160), ("east", 120), ("west", 120)):
        (folder / "clinics" / f"{site}.csv").write_text(table(site, count))
    return folder


def make_base(folder: Path) -> None:
    """A model of Hugging Face, which has learnt nothing."""
    config = hugging_face.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    hugging_face.LlamaForCausalLM(config).save_pretrained(folder)


def sovfed(*arguments: str | Path) -> str:
    """What the command prints; it must succeed."""
    done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def _packed(folder: Path, authority_home: Path) -> Path:
    """A task as code whose net has a head that stays at home, packed and reviewed."""
    wheel = write_wheel(folder, task=PACKAGE, net=NET.replace("nn.Linear(5,", "nn.Linear(2,"))
    archive, _ = pack(wheel, make_signer(folder, authority_home, "pat", "vendor"))
    reviewer = make_signer(folder, authority_home, "ann", "north")
    path = folder / "sepsis-1.sovtask"
    path.write_bytes(archive.signed(reviewer.sign(archive.text, REVIEWER)).to_bytes())
    return path


@pytest.fixture(scope="module")
def own(clinics: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    config = make_config(f"task={clinics / 'birth.yaml'}", f"data.path={clinics / 'clinics'}", "rounds=12")
    federation = make_federation(tmp_path_factory.mktemp("federation"), config)
    try:
        federation.build_agency()
        federation.start_agency()
        federation.enrol()
        for clinic in federation.institutions:
            keep_task(federation.client_home(clinic.name), str(clinics / "heads.yaml"))
            allow_task(federation.client_home(clinic.name), clinics / "heads.yaml")
            prepare_notes(federation.client_home(clinic.name), clinics, clinic.name)
        archive = _packed(clinics, federation.authority_home)
        sovfed("server", "task", "add", archive, "--home", federation.home)
        for clinic in federation.institutions:
            sovfed("client", "task", "add", archive, "--allow", "--home", federation.client_home(clinic.name))
        federation.start_institutions()
        yield federation
    finally:
        federation.stop()


def prepare_notes(home: Path, folder: Path, site: str) -> None:
    """What an institution does before it takes part in a language model, by its commands."""
    lines = [json.dumps({"id": str(row), "text": text}) for row, text in enumerate(documents(site, 60))]
    (folder / f"{site}.jsonl").write_text("\n".join(lines))
    store, task, adapted = folder / f"{site}-tokens", str(folder / "notes.yaml"), str(folder / "adapted.yaml")
    for command in (
        ["data", "prepare", task, str(folder / f"{site}.jsonl"), "--tokenizer", str(folder / "tokenizer.json"),
         "--out", str(store)],
        ["study", "add", "notes", "--task", task, "--allow", "data=tokens", f"data.path={store}", "--home", str(home)],
        ["study", "add", "adapted", "--task", adapted, "--base", str(folder / "base"), "--allow", "data=tokens",
         f"data.path={store}", "--home", str(home)],
    ):  # fmt: skip
        done = CliRunner().invoke(cli, ["client", *command], catch_exceptions=False)
        assert done.exit_code == 0, done.output


def test_a_language_model_learns_from_sums_of_sixteen_bits_and_writes_text(own: LocalFederation, clinics: Path) -> None:
    """With the clip that every policy takes; Muon and AdamW step at the agency."""
    config = compose([
        f"task={clinics / 'notes.yaml'}", "strategy=fedsgd", "strategy.gradient_scale=10", "secagg=compact",
        "secagg.max_weight=1000", "task.optimizer=muon", "task.learning_rate=0.02", "task.gradient_clip=1",
        "task.batch_size=64", "evaluate_every=8",
    ]).config  # fmt: skip
    chosen = {name: getattr(config, name) for name in ("task", "strategy", "secagg", "evaluate_every")}
    own.start_run("notes", dataclasses.replace(own.config, rounds=8, **chosen))
    lines = finished(own, "notes")
    told = summary(own, "notes")
    assert lines[-1]["train_loss"] < 0.9 * lines[0]["train_loss"]
    assert 0 < told["metrics"]["bits_per_byte"] < 5
    assert (told["secure_aggregation"], told["secure_aggregation_terms"]["bits"]) == (True, 16)
    assert all(0 < line["ring_error"] < 0.2 for line in lines)
    arguments = ["generate", "notes", "--tokenizer", str(clinics / "tokenizer.json"), "--prompt", "第", "--tokens", "8"]
    written = CliRunner().invoke(cli, [*arguments, "--home", str(own.home)], catch_exceptions=False)
    assert written.exit_code == 0 and written.output.startswith("第"), written.output


def test_a_model_of_hugging_face_goes_on_learning_and_transformers_loads_it(
    own: LocalFederation, clinics: Path, tmp_path: Path
) -> None:
    """Each place has its own copy of the base, the sealed trainers too; adapters alone travel, masked."""
    config = compose([
        f"task={clinics / 'adapted.yaml'}", f"task.base={clinics / 'base'}", "strategy=fedsgd", "task.optimizer=adamw",
        "task.learning_rate=0.02", "task.batch_size=64",
    ]).config  # fmt: skip
    own.start_run("adapted", dataclasses.replace(own.config, rounds=4, task=config.task, strategy=config.strategy))
    lines = finished(own, "adapted")
    assert lines[-1]["train_loss"] < lines[0]["train_loss"] and len(lines[-1]["participants"]) == 4
    assert summary(own, "adapted")["secure_aggregation"]
    adapters = load_file(folders.run_folder(own.home, "adapted") / "model.safetensors")
    assert {name.rpartition(".")[2] for name in adapters} == {"b"}
    asked = ("--base", clinics / "base", "--home", own.home)
    sovfed("generate", "adapted", "--tokenizer", clinics / "tokenizer.json", "--tokens", "4", *asked)
    sovfed("model", "export", "adapted", "--hf", tmp_path / "merged", *asked)
    before, merged = (
        hugging_face.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).state_dict()
        for folder in (clinics / "base", tmp_path / "merged")
    )
    assert sum(not merged[name].equal(tensor) for name, tensor in before.items()) == len(adapters) == 7


def test_a_table_and_a_task_yaml_become_a_model_that_reads_new_tables(own: LocalFederation, tmp_path: Path) -> None:
    own.start_run("plain")
    names = {name for line in finished(own, "plain") for name in line["participants"]}
    assert names == {"east", "north", "south", "west"}
    assert summary(own, "plain")["metrics"]["auc"] > 0.85
    new = list(rows("new", 40))
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([HEADER[:-1], *(row[:-1] for row in new)])
    (tmp_path / "new.csv").write_text(text.getvalue())
    arguments = ["predict", "plain", str(tmp_path / "new.csv"), "--id", "patient_id", "--home", str(own.home)]
    done = CliRunner().invoke(model, arguments, catch_exceptions=False)
    predicted = {row["patient_id"]: row["outcome"] for row in csv.DictReader(done.stdout.splitlines())}
    right = sum(predicted[row[0]] == row[-1] for row in new)
    assert (len(predicted), right > 32) == (40, True)


def test_each_clinic_s_own_head_stays_there_and_comes_with_its_model(
    own: LocalFederation, clinics: Path, tmp_path: Path
) -> None:
    config = compose([f"task={clinics / 'heads.yaml'}", "strategy=fedper"]).config
    own.start_run("heads", dataclasses.replace(own.config, task=config.task, strategy=config.strategy, rounds=2))
    finished(own, "heads")
    tensors = {}
    for clinic in ("north", "south"):
        arguments = ["client", "model", "get", "heads", str(tmp_path / clinic), "--home", str(own.client_home(clinic))]
        done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
        assert "parts that stay here (strategy=fedper)" in done.output
        tensors[clinic] = load_file(tmp_path / clinic / "model.safetensors")
    north, south = tensors.values()
    differ = {name for name in north if not (north[name] == south[name]).all()}
    assert differ and len(differ) < len(north)
    read = CliRunner().invoke(
        cli, ["model", "predict", str(tmp_path / "north"), str(clinics / "clinics" / "north.csv")]
    )
    assert len(read.stdout.splitlines()) == 201


def test_a_head_of_a_packaged_net_stays_too_and_is_measured_at_home(own: LocalFederation, tmp_path: Path) -> None:
    own_tasks.offer(own.home)
    config = compose(["task=sepsis", "strategy=fedper", "task.learning_rate=0.1", "task.batch_size=16"]).config
    own.start_run("package", dataclasses.replace(own.config, task=config.task, strategy=config.strategy, rounds=3))
    assert {name for line in finished(own, "package") for name in line["participants"]} == {
        "east",
        "north",
        "south",
        "west",
    }
    tensors, told = {}, {}
    for clinic in ("north", "south"):
        home = str(own.client_home(clinic))
        for command in (["get", "package", str(tmp_path / clinic)], ["evaluate", "package", "--no-alone"]):
            arguments = [sys.executable, "-m", "sovfed", "client", "model", *command, "--home", home]
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)  # it seals itself
            assert done.returncode == 0, done.stderr
            told[clinic, command[0]] = done.stdout + done.stderr
        assert "parts that stay here (strategy=fedper)" in told[clinic, "get"]
        assert "parts that stay here (strategy=fedper)" in told[clinic, "evaluate"]
        tensors[clinic] = load_file(tmp_path / clinic / "model.safetensors")
    published = load_file(next((folders.run_folder(own.home, "package")).rglob("model.safetensors")))
    north, south = tensors.values()
    for name in north:
        assert (north[name] == south[name]).all() == (not name.startswith("out."))
        assert (north[name] == published[name]).all() == (not name.startswith("out."))


def test_it_trains_privately_and_each_ledger_pays(own: LocalFederation) -> None:
    private = dataclasses.replace(
        own.config, rounds=3,
        privacy=compose(["privacy=distributed", "privacy.population=600", "privacy.epsilon=3", "privacy.delta=1e-6",
                         "privacy.colluders=0", "server.min_cohort=3"]).config.privacy,
        task=dataclasses.replace(own.config.task, momentum=None),
    )  # fmt: skip
    own.start_run("private", private)
    finished(own, "private")
    told = summary(own, "private")
    assert 0 < told["epsilon"] <= 3 and told["metrics"] == {}


def test_a_task_that_differs_in_one_word_is_refused_at_once(own: LocalFederation, tmp_path: Path) -> None:
    (tmp_path / "birth.yaml").write_text(TASK.replace("high: 400", "high: 500"))
    task = compose([f"task={tmp_path / 'birth.yaml'}"]).config.task
    own.start_run("other", dataclasses.replace(own.config, task=task))
    run = wait_for_run(own, "other")
    assert run["status"] == "failed"
    assert "4 of 4" in run["reason"] and "wrong-task" in run["reason"], run["reason"]
    assert (folders.run_folder(own.home, "other") / "task.yaml").read_text() == (tmp_path / "birth.yaml").read_text()
