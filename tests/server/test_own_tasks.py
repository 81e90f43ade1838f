"""The agency's archives: checked when they are added, when a run starts, and by the run's own process."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.packages import make_signer, write_wheel

from sovfed.federation.archive.archive import Archive, parse
from sovfed.federation.archive.kept import folders
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.signing import PUBLISHER, REVIEWER
from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, IdentityError, PolicyError
from sovfed.federation.tasks import registry
from sovfed.server import home as agency
from sovfed.server import own_tasks
from sovfed.server.cli.run import cli
from sovfed.server.registry import authority


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_OFFERED", {})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("root") / "authority"
    authority.init(home, "Authority")
    return home


@pytest.fixture(scope="module")
def archives(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Archive]:
    """One that nobody has reviewed, and the same reviewed."""
    folder = tmp_path_factory.mktemp("people")
    publisher, reviewer = (make_signer(folder, root, *who) for who in (("pat", "vendor"), ("ann", "north")))
    archive, _ = pack(write_wheel(folder / "wheel"), publisher)
    return {
        "alone": archive,
        "reviewed": archive.signed(reviewer.sign(archive.text, REVIEWER)),
        "redirected": _redirected(archive, lambda text: publisher.sign(text, PUBLISHER)),
    }


def _redirected(archive: Archive, sign: object) -> Archive:
    """Signed by its publisher, with a setting that names another file."""
    forged = replace(
        archive, manifest=replace(archive.manifest, settings={"file": json.dumps("/etc/passwd")}), signatures={}
    )
    return forged.signed(sign(forged.text))  # type: ignore[operator]


@pytest.fixture
def home(tmp_path: Path, root: Path) -> Path:
    agency.init(tmp_path / "agency", compose([]).config)
    for name in ("root.pem", "crl.pem"):
        (tmp_path / "agency" / "identity" / name).write_bytes((root / name).read_bytes())
    return tmp_path / "agency"


def written(archive: Archive, folder: Path) -> Path:
    (folder / archive.file_name).write_bytes(archive.to_bytes())
    return folder / archive.file_name


def test_a_run_chooses_it_by_its_name_and_nothing_is_imported_to_find_out(
    home: Path, tmp_path: Path, archives: dict[str, Archive]
) -> None:
    list(own_tasks.added(home, written(archives["reviewed"], tmp_path)))
    own_tasks.offer(home)
    config = compose(["task=sepsis", "rounds=3"]).config
    assert config.task.name == "sepsis" and str(config.task.file).startswith(str(home))
    checked = own_tasks.require_reviewed(home, config)
    assert checked == archives["reviewed"]
    (tmp_path / "run").mkdir()
    pinned = own_tasks.in_folder(tmp_path / "run", config, archives["reviewed"])
    assert pinned.task.file == str(tmp_path / "run" / "task.sovtask")
    assert "wardnet" not in sys.modules


def test_without_reviews_it_is_neither_added_nor_run(home: Path, tmp_path: Path, archives: dict[str, Archive]) -> None:
    file = written(archives["alone"], tmp_path)
    with pytest.raises(PolicyError, match="min_reviewers is 1"):
        list(own_tasks.added(home, file))
    with pytest.raises(PolicyError, match="min_reviewers is 1"):
        own_tasks.require_reviewed(home, compose([f"task={file}"]).config)


def test_no_code_is_imported_to_start_a_run_before_its_reviews_hold(
    home: Path, tmp_path: Path, archives: dict[str, Archive]
) -> None:
    """By the operator's own command, which has the agency's keys and the network."""
    file = written(archives["alone"], tmp_path)
    done = CliRunner().invoke(cli, ["start", f"task={file}", "--home", str(home)])
    assert isinstance(done.exception, PolicyError) and "min_reviewers is 1" in str(done.exception)
    assert "wardnet" not in sys.modules


def test_what_another_authority_signed_is_not_run(home: Path, tmp_path: Path, archives: dict[str, Archive]) -> None:
    authority.init(tmp_path / "other", "Authority")
    (home / "identity" / "root.pem").write_bytes((tmp_path / "other" / "root.pem").read_bytes())
    (home / "identity" / "crl.pem").write_bytes((tmp_path / "other" / "crl.pem").read_bytes())
    config = compose([f"task={written(archives['reviewed'], tmp_path)}"]).config
    with pytest.raises(IdentityError, match="no chain to the root"):
        own_tasks.require_reviewed(home, config)


def test_one_that_was_changed_where_it_is_kept_takes_no_other_task_away(
    home: Path, tmp_path: Path, archives: dict[str, Archive], caplog: pytest.LogCaptureFixture
) -> None:
    list(own_tasks.added(home, written(archives["reviewed"], tmp_path)))
    (folder,) = folders(home)
    (folder / "content" / "wardnet" / "hidden.txt").chmod(0o600)
    (folder / "content" / "wardnet" / "hidden.txt").write_text("9")
    own_tasks.offer(home)
    assert registry.offered("sepsis") is None and "was changed" in caplog.text


def test_the_settings_that_it_recommends_name_no_other_file(tmp_path: Path, archives: dict[str, Archive]) -> None:
    with pytest.raises(ConfigError, match="'file' is no setting that a task recommends"):
        parse(archives["redirected"].entries())


def test_code_does_not_pass_for_a_task_file_that_needs_no_review(archives: dict[str, Archive]) -> None:
    archive = archives["alone"]
    for changed in (replace(archive.manifest, kind="task.yaml"), replace(archive.manifest, entry="")):
        with pytest.raises(ConfigError, match=r"one file, task\.yaml|code has an entry"):
            parse(replace(archive, manifest=changed, signatures={}).entries())
