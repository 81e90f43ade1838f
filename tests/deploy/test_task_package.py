"""A package from outside, with real processes: packed, reviewed twice, added at five institutions and the agency,
trained privately, used on a new table; a byte that was changed anywhere is refused."""

from __future__ import annotations

import csv
import dataclasses
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.deploy.conftest import finished, summary, wait_for_run
from tests.packages import HEADER, PROJECT, TASK, build_wheel, rows, table

from sovfed.cli import cli
from sovfed.clients.home.own_tasks import allow_task
from sovfed.clients.ledger.entries import Budget
from sovfed.federation.archive.kept import folders
from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks import registry
from sovfed.server import own_tasks
from sovfed.server.registry import authority
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation

pytestmark = pytest.mark.deploy
SITES = {"north": 160, "south": 140, "east": 120, "west": 120, "centre": 100}
OWN_CONNECTOR = """

import csv

import numpy
from sovfed.task import Connector, records


def load(task, config):
    with open(config.path) as file:
        rows = list(csv.DictReader(file))
    numbers = numpy.array([[float(row["lactate"]), float(row["temperature"])] for row in rows])
    codes = numpy.array([[("", "north", "south").index(row["ward"]) - 1] for row in rows])
    ill = numpy.array([row["outcome"] == "septic" for row in rows], dtype=numpy.int64)
    inputs = {".numbers": numbers, ".codes": codes}
    return records(task, (inputs, ill), persons=[row["patient"] for row in rows])


CONNECTOR = Connector(load, task="sepsis")
"""
CONNECTS = "centre"  # the site whose records the package's own connector reads
PRIVATE = (
    "privacy=distributed", "privacy.population=640", "privacy.epsilon=8", "privacy.delta=1e-4", "privacy.colluders=0",
    "server.min_cohort=3", "server.start_cohort=5", "rounds=20", "task.batch_size=100", "task.learning_rate=2",
)  # fmt: skip


def sovfed(*arguments: str | Path) -> str:
    """What the command prints; it must succeed."""
    done = CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def signer(folder: Path, authority_home: Path, person: str, organisation: str) -> Path:
    """The folder of a person's key, certified by the commands that the documentation names."""
    home, certificate = folder / f"signer-{person}", folder / f"{person}.pem"
    sovfed("task", "signer", "create", person, "--organisation", organisation, "--home", home)
    sovfed(
        "authority", "sign", home / "request.csr", "--signer", "--yes", "--out", certificate, "--home", authority_home
    )
    files = (certificate, authority_home / "root.pem", authority_home / "crl.pem")
    sovfed("task", "signer", "install", *files, "--home", home)
    return home


@pytest.fixture(scope="module")
def archive(agency: LocalFederation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, packed by its publisher and reviewed by two people of two organisations."""
    folder = tmp_path_factory.mktemp("outside")
    publisher = signer(folder, agency.authority_home, "pat", "vendor")
    points = '[project.entry-points."sovfed.connectors"]\nward_files = "wardnet:CONNECTOR"\n[tool.setuptools.packages'
    project = PROJECT.replace("[tool.setuptools.packages", points, 1)
    wheel = build_wheel(folder, project=project, task=TASK + OWN_CONNECTOR)
    sovfed("task", "pack", wheel, "--out", folder, "--home", publisher)
    path = folder / "sepsis-1.sovtask"
    for person, organisation in (("ann", "north"), ("bob", "south")):
        home = signer(folder, agency.authority_home, person, organisation)
        sovfed("task", "review", path, "--yes", "--home", home)
    return path


@pytest.fixture(scope="module")
def agency(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """An agency, and five institutions that have enrolled and not started."""
    folder = tmp_path_factory.mktemp("federation")
    institutions = []
    for site, count in SITES.items():
        (folder / f"{site}.csv").write_text(table(site, count))
        source = "ward_files" if site == CONNECTS else "csv"
        data = DataConfig(source=source, path=str(folder / f"{site}.csv"), site=site)
        institutions.append(Institution(site, data))
    policy = dataclasses.replace(
        POLICY, allowed_tasks=(), require_privacy=True, min_batch_size=1, max_local_epochs=1000, min_reviewers=2,
        min_reviewing_organisations=2,
        privacy=Budget(annual_epsilon=8.0, delta=1e-4, population=640, max_share_per_run=1.0),
    )  # fmt: skip
    federation = LocalFederation(folder, institutions, compose(list(PRIVATE)).config, policy)
    try:
        federation.build_agency()
        federation.start_agency()
        federation.enrol()
        yield federation
    finally:
        federation.stop()


@pytest.fixture(scope="module")
def running(agency: LocalFederation, archive: Path) -> LocalFederation:
    """All of them with the task, and started."""
    for site in SITES:
        shown = sovfed("client", "task", "add", archive, "--allow", "--home", agency.client_home(site))
        assert "reviewed by ann of north" in shown and "reviewed by bob of south" in shown
        assert "lactate: number, 0 to 30 mmol/l" in shown and "policy.yaml now allows sepsis@" in shown
    sovfed("server", "task", "add", archive, "--home", agency.home)
    agency.start_institutions()
    return agency


def test_it_is_trained_privately_and_its_model_reads_a_new_table(running: LocalFederation, tmp_path: Path) -> None:
    own_tasks.offer(running.home)
    config = compose(["task=sepsis", *PRIVATE]).config
    running.start_run("private", config)
    assert {name for line in finished(running, "private") for name in line["participants"]} == set(SITES)
    assert 0 < summary(running, "private")["epsilon"] <= 8
    assert "wardnet" not in sys.modules  # nor in the process that started it
    new = list(rows("new", 60))
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([HEADER[:-1], *(row[:-1] for row in new)])
    (tmp_path / "new.csv").write_text(text.getvalue())
    printed = sovfed("model", "predict", "private", tmp_path / "new.csv", "--id", "patient", "--home", running.home)
    predicted = {row["patient"]: row["outcome"] for row in csv.DictReader(printed.splitlines())}
    assert predicted.keys() == {row[0] for row in new}  # how good it is, the noise over 640 persons decides
    assert set(predicted.values()) <= {"well", "septic"}


def test_an_institution_measures_it_at_home_in_a_process_that_is_sealed(running: LocalFederation) -> None:
    """In a process of its own: whoever imports a package can reach nothing any more."""
    home = running.client_home("south")
    command = [
        sys.executable,
        "-m",
        "sovfed",
        "client",
        "model",
        "evaluate",
        "private",
        "--no-alone",
        "--home",
        str(home),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "own held-out records" in done.stdout and "auc" in done.stdout


def test_only_the_trainer_has_imported_it(running: LocalFederation) -> None:
    """It prints a line when it is imported, which the log of a process would show."""
    home = running.client_home("north")
    (folder,) = folders(home)
    assert not list(folder.rglob("__pycache__")) and not list(folder.rglob("*.pyc"))
    logs = {name: (home / "logs" / f"{name}.log").read_text() for name in ("trainer", "gateway", "supernode")}
    assert {name for name, log in logs.items() if "wardnet was imported" in log} == {"trainer"}
    assert "sealed: no network" in logs["trainer"] and "left out" not in logs["trainer"]


def test_an_institution_whose_kept_bytes_were_changed_refuses_and_says_so_in_its_own_log(
    running: LocalFederation,
) -> None:
    """It starts, and answers that it has no such task: only its own log says which byte."""
    home = running.client_home("west")
    (folder,) = folders(home)
    source = folder / "content" / "wardnet" / "net.py"
    source.chmod(0o600)
    source.write_bytes(source.read_bytes().replace(b"tanh", b"relu"))
    running.supervisors["west"].stop()
    running.start_institution("west")
    config = compose(["task=sepsis", *PRIVATE, "server.min_cohort=5", "rounds=1"]).config
    running.start_run("changed", config)
    run = wait_for_run(running, "changed")
    assert run["status"] == "failed" and "west: wrong-task" in run["reason"], run["reason"]
    log = (home / "logs" / "trainer.log").read_text()
    assert "'wardnet/net.py' was changed" in log


def test_a_run_whose_archive_was_changed_at_the_agency_does_not_start(running: LocalFederation) -> None:
    own_tasks.offer(running.home)
    path = registry.offered("sepsis")
    assert path is not None
    config = compose(["task=sepsis", *PRIVATE]).config
    path.write_bytes(path.read_bytes().replace(b"tanh", b"relu"))
    with pytest.raises(ConfigError, match="not an archive of a task: Bad CRC-32"):
        running.start_run("swapped", config)


def test_a_signer_who_was_revoked_no_longer_counts_at_the_next_start(running: LocalFederation, archive: Path) -> None:
    home = running.client_home("east")
    crl = authority.revoke(running.authority_home, "bob", "signer")
    (home / "identity" / "crl.pem").write_bytes(crl)
    running.supervisors["east"].stop()
    running.start_institution("east")
    assert "revoked" in (home / "logs" / "trainer.log").read_text()
    done = CliRunner().invoke(cli, ["client", "task", "add", str(archive), "--home", str(home)])
    assert done.exit_code != 0 and "min_reviewers is 2" in str(done.exception)
    assert allow_task(home, archive).startswith("sepsis@")


def test_the_archive_is_no_package_that_was_installed() -> None:
    done = subprocess.run([sys.executable, "-c", "import wardnet"], capture_output=True, check=False)
    assert done.returncode != 0
