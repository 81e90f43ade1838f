"""An institution adds an archive: what it is shown, what is refused, and what knows the manifest alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from tests.packages import TASK, make_signer, table, write_wheel

from sovfed.cli import cli
from sovfed.clients.home.folder import create, load_config
from sovfed.clients.home.looked import allowed_tasks, data_findings
from sovfed.clients.home.own_tasks import added, allow_task, entry_of
from sovfed.clients.home.packages import make_outlines_known, make_packages_known
from sovfed.clients.home.policy import Policy, load_policy
from sovfed.clients.models.received import ReceivedModels
from sovfed.federation.archive.archive import Archive
from sovfed.federation.archive.kept import folders, read_kept
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.signer import SigningKey
from sovfed.federation.archive.signing import REVIEWER
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ConfigError, IdentityError, PolicyError
from sovfed.federation.tasks import registry
from sovfed.server.registry import authority


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADDED", {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("institution")


@pytest.fixture(scope="module")
def root(folder: Path) -> Path:
    authority.init(folder / "authority", "Authority")
    return folder / "authority"


@pytest.fixture(scope="module")
def signers(folder: Path, root: Path) -> list[SigningKey]:
    """A publisher and two reviewers."""
    people = (("pat", "vendor"), ("ann", "north"), ("bob", "south"))
    return [make_signer(folder, root, person, organisation) for person, organisation in people]


@pytest.fixture(scope="module")
def reviewed(folder: Path, signers: list[SigningKey]) -> Archive:
    publisher, *reviewers = signers
    archive, _ = pack(write_wheel(folder / "wheel"), publisher)
    for reviewer in reviewers:
        archive = archive.signed(reviewer.sign(archive.text, REVIEWER))
    return archive


def written(archive: Archive, folder: Path) -> Path:
    path = folder / f"{archive.manifest.digest[:8]}-{archive.file_name}"
    path.write_bytes(archive.to_bytes())
    return path


def make_home(folder: Path, root: Path, **policy: object) -> Path:
    """A home that trusts `root`, with records."""
    home = folder / "home"
    (folder / "north.csv").write_text(table("north", 40))
    data = DataConfig(source="csv", path=str(folder / "north.csv"), site="north")
    create(home, ClientConfig(home=str(home), data=data), dataclasses.replace(Policy(), **policy))  # type: ignore[arg-type]
    for name in ("root.pem", "crl.pem"):
        (home / "identity" / name).write_bytes((root / name).read_bytes())
    return home


def test_it_is_checked_shown_kept_and_allowed_and_only_the_trainer_s_function_imports_it(
    tmp_path: Path, root: Path, reviewed: Archive
) -> None:
    home, file = make_home(tmp_path, root, min_reviewers=2, min_reviewing_organisations=2), written(reviewed, tmp_path)
    told = "\n".join(added(home, file))
    for line in ("published by pat of vendor", "reviewed by ann of north", "input  lactate: number, 0 to 30 mmol/l"):
        assert line in told
    assert allow_task(home, file) == entry_of(reviewed.manifest)
    (kept,) = folders(home)
    assert read_kept(kept) == reviewed
    modes = {path.stat().st_mode & 0o777 for path in kept.rglob("*") if path.is_file()}
    assert modes == {0o400} and kept.stat().st_mode & 0o777 == 0o500
    policy, config = load_policy(home), load_config(home)
    (outline,) = make_outlines_known(home, policy)
    assert (outline.name, outline.digest) == ("sepsis", reviewed.manifest.digest)
    assert outline.schema == reviewed.manifest.schema
    assert allowed_tasks(config, policy)[0].digest == reviewed.manifest.digest
    assert data_findings(config, policy) == []
    with pytest.raises(ConfigError, match="runs in the trainer alone"):
        outline.model()
    assert not {"wardnet", "wardnet.net"} & set(sys.modules)


def test_what_is_not_allowed_or_was_changed_is_not_imported(
    tmp_path: Path, root: Path, reviewed: Archive, caplog: pytest.LogCaptureFixture
) -> None:
    home, file = make_home(tmp_path, root), written(reviewed, tmp_path)
    list(added(home, file))
    caplog.set_level("INFO")
    assert make_packages_known(home, load_policy(home)) == []
    assert "no entry of allowed_tasks has its name and digest" in caplog.text
    allow_task(home, file)
    (kept,) = folders(home)
    for name in ("content/wardnet/hidden.txt", "signatures/publisher.json", "manifest.json"):
        original = (kept / name).read_bytes()
        (kept / name).chmod(0o600)
        (kept / name).write_bytes(bytes([original[0] ^ 1]) + original[1:])
        caplog.clear()
        assert make_packages_known(home, load_policy(home)) == []
        assert "is left out" in caplog.text and ("was changed" in caplog.text or "not JSON" in caplog.text)
        (kept / name).write_bytes(original)
    (kept / "content").chmod(0o700)
    (kept / "content" / "more.py").write_text("")
    caplog.clear()
    assert make_packages_known(home, load_policy(home)) == []
    assert "'more.py' is in the archive and not in its manifest" in caplog.text
    (kept / "content" / "more.py").unlink()
    (kept / "content" / "more.py").symlink_to("/etc/passwd")
    assert make_packages_known(home, load_policy(home)) == []
    assert "wardnet" not in sys.modules


def test_reviews_are_asked_for_by_the_policy_as_it_is_when_the_trainer_starts(
    tmp_path: Path, root: Path, reviewed: Archive, signers: list[SigningKey], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = signers[0]
    alone = Archive(reviewed.manifest, reviewed.content, {}).signed(publisher.sign(reviewed.text, "publisher"))
    home = make_home(tmp_path, root)
    with pytest.raises(PolicyError, match="reviewed by nobody; min_reviewers is 1"):
        list(added(home, written(alone, tmp_path)))
    assert folders(home) == []
    file = written(reviewed, tmp_path)
    list(added(home, file))
    allow_task(home, file)
    stricter = dataclasses.replace(load_policy(home), min_reviewers=3)
    assert make_packages_known(home, stricter) == []
    assert "min_reviewers is 3" in caplog.text


def test_before_enrolment_there_is_no_root_to_check_under(tmp_path: Path, root: Path, reviewed: Archive) -> None:
    home = make_home(tmp_path, root)
    (home / "identity" / "root.pem").unlink()
    with pytest.raises(IdentityError, match="no root of the authority yet"):
        list(added(home, written(reviewed, tmp_path)))


def test_the_next_version_is_shown_as_what_differs_from_the_one_that_was_allowed(
    tmp_path: Path, root: Path, reviewed: Archive, signers: list[SigningKey]
) -> None:
    home, first = make_home(tmp_path, root), written(reviewed, tmp_path)
    list(added(home, first))
    allow_task(home, first)
    archive, _ = pack(write_wheel(tmp_path / "next", hidden="9"), signers[0])
    second = written(archive.signed(signers[1].sign(archive.text, REVIEWER)), tmp_path)
    told = "\n".join(added(home, second))
    assert "what differs from version 1" in told and "\n-8\n+9\n" in told.replace("\\ No newline", "")
    shown = CliRunner().invoke(cli, ["task", "diff", str(first), str(second)]).output
    assert "+9" in shown and "hidden.txt" in shown


def test_records_are_looked_at_by_the_columns_of_an_archive_without_its_code(
    tmp_path: Path, root: Path, reviewed: Archive
) -> None:
    (tmp_path / "records.csv").write_text(table("east", 30).replace("septic", "ill"))
    arguments = ["client", "check-data", str(written(reviewed, tmp_path)), str(tmp_path / "records.csv")]
    done = CliRunner().invoke(cli, arguments)
    assert "outcome" in done.output and "cannot be used" in done.output
    assert "wardnet" not in sys.modules


RECEIVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.federation.models.made_tasks import RUN
from sovfed.clients.models.received import ReceivedModels
from sovfed.federation.archive.opened import open_task
from sovfed.federation.models.facts import facts_of
from sovfed.federation.tasks import initial_vector
task = open_task(Path(sys.argv[1]))
scale = task.transform.public_scale
ReceivedModels(Path(sys.argv[2])).keep(task, initial_vector(task, 1), facts_of(task, scale, RUN), owner="7", plan={})
"""
USED = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
print(tuple(program(torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64)).shape))
"""


def test_a_model_of_it_is_measured_and_used_in_processes_that_are_sealed_before(
    tmp_path: Path, root: Path, reviewed: Archive
) -> None:
    """With real processes, which tell what the package's code could reach: `client model evaluate`, `model predict`."""
    home, file = make_home(tmp_path, root), written(reviewed, tmp_path)
    list(added(home, file))
    allow_task(home, file)
    run = [sys.executable, "-c", RECEIVE, str(file), str(home / "received"), str(Path(__file__).parents[3])]
    kept = subprocess.run(run, capture_output=True, text=True, check=False)
    assert kept.returncode == 0, kept.stderr

    def sovfed(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sovfed", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    (received,) = ReceivedModels(home / "received").list()
    measured = sovfed("client", "model", "evaluate", received.run, "--no-alone", "--home", home)
    assert measured.returncode == 0, measured.stderr
    assert "own held-out records" in measured.stdout and "wardnet was imported" in measured.stdout
    predicted = sovfed("model", "predict", received.path, tmp_path / "north.csv", "--id", "patient", "--task", file)
    assert predicted.returncode == 0, predicted.stderr
    assert len(predicted.stdout.splitlines()) == 41 and "wardnet was imported" not in predicted.stdout
    unnamed = sovfed("model", "predict", received.path, tmp_path / "north.csv")
    assert unnamed.returncode == 2 and "unknown task 'sepsis'" in unnamed.stderr and "--task ARCHIVE" in unnamed.stderr
    program = tmp_path / "sepsis.pt2"
    exported = sovfed("model", "export", received.path, "--torch", program, "--task", file)
    assert exported.returncode == 0, exported.stderr
    assert "written by the task's code, sealed" in exported.stdout and "inputs: numbers float32" in exported.stdout
    assert "wardnet was imported" not in exported.stdout
    used = subprocess.run([sys.executable, "-c", USED, str(program)], capture_output=True, text=True, check=False)
    assert used.returncode == 0 and used.stdout == "(4, 2)\n", used.stderr
    refused = sovfed("model", "export", received.path, "--hf", tmp_path / "hf", "--task", file)
    assert refused.returncode == 2 and "none of Hugging Face's" in refused.stderr and not (tmp_path / "hf").exists()


OWN_HEAD = """
import sys
from pathlib import Path
import numpy
sys.path.insert(0, sys.argv[4])
from tests.federation.models.made_tasks import RUN
from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.training.personal import PersonalStates
from sovfed.federation.archive.opened import open_task
from sovfed.federation.messages import EvaluateRequest
from sovfed.federation.models.facts import facts_of
from sovfed.federation.tasks import initial_vector
task = open_task(Path(sys.argv[1]))
scale, model = task.transform.public_scale, initial_vector(task, 1)
ReceivedModels(Path(sys.argv[2])).keep(task, model, facts_of(task, scale, RUN), owner="7", plan={})
request = EvaluateRequest(
    run="7", round=1, task=task.name, model=model, scale=scale, algorithm="fedper", keep=RUN.name, digest=task.digest
)
PersonalStates(Path(sys.argv[3])).save(request, numpy.full_like(model, 0.5))
"""


def test_a_model_of_it_comes_with_the_own_head_by_its_code_in_a_sealed_process(
    tmp_path: Path, root: Path, signers: list[SigningKey]
) -> None:
    task = TASK.replace("build=", "personal=lambda name: name.startswith('out.'), build=")
    archive, _ = pack(write_wheel(tmp_path / "wheel", task=task), signers[0])
    archive = archive.signed(signers[1].sign(archive.text, REVIEWER))
    home, file = make_home(tmp_path, root), written(archive, tmp_path)
    list(added(home, file))
    folders_ = [str(home / "received"), str(home / "personal"), str(Path(__file__).parents[3])]
    done = subprocess.run(
        [sys.executable, "-c", OWN_HEAD, str(file), *folders_], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (received,) = ReceivedModels(home / "received").list()
    command = ["client", "model", "get", received.run, str(tmp_path / "out"), "--home", str(home)]
    with pytest.raises(PolicyError, match="allowed_tasks"):
        CliRunner().invoke(cli, command, catch_exceptions=False)
    allow_task(home, file)
    told = CliRunner().invoke(cli, command, catch_exceptions=False).output
    assert "strategy=fedper" in told and "wardnet" not in sys.modules
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "model.html",
        "model.json",
        "model.safetensors",
    ]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert (tensors["out.weight"] == 0.5).all() and not (tensors["body.weight"] == 0.5).any()
    predict = ["model", "predict", str(tmp_path / "out"), str(tmp_path / "north.csv"), "--task", str(file)]
    assert len(CliRunner().invoke(cli, predict, catch_exceptions=False).output.splitlines()) == 41
