"""What starts a run and what the coordinator reads of it; the real superlink plays this in test_control.py."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.server.agency import free_port

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, IdentityError, ServiceError
from sovfed.federation.files import private_directory
from sovfed.federation.wire.loopback import ensure_secret
from sovfed.server.runs import folders
from sovfed.server.runs.control import LOOPBACK_SECRET, ControlClient
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.recovery import Recovery, end_coordinators

URI = "postgresql://mlflow:s3cret-pw@db.internal/x"


class Recorder:
    """Stands where the superlink's client does, and keeps what would have travelled."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def start_run(self, spec: Mapping[str, Any]) -> int:
        self.sent.append(dict(spec))
        return 7

    def stop_run(self, run_id: int) -> None:
        raise ServiceError(f"run {run_id} has ended already")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return private_directory(tmp_path / "agency")


@pytest.mark.parametrize("overrides", [[], [f"tracking.uri={URI}"]])
def test_a_name_travels_and_the_coordinator_reads_the_rest_at_home(home: Path, overrides: list[str]) -> None:
    config, control = compose([*overrides, "data.path=/srv/secret", "rounds=3"]).config, Recorder()
    assert folders.start_run(control, home, "study", config, resume=False) == 7  # type: ignore[arg-type]
    assert control.sent == [{"name": "study", "resume": False}]
    assert folders.stored_config(home, "study", 7) == config
    folders.start_run(control, home, "study", folders.stored_config(home, "study"), resume=True)  # type: ignore[arg-type]
    assert control.sent[1] == {"name": "study", "resume": True}
    assert folders.stored_config(home, "study", 7) == config
    assert b"s3cret" not in (home / "runs" / "study" / folders.STATE).read_bytes()


def test_a_run_that_has_finished_is_not_resumed(home: Path) -> None:
    """Seen: a second version of the model in the registry, or a released run that is listed as failed."""
    control = Recorder()
    folders.start_run(control, home, "study", compose([]).config, resume=False)  # type: ignore[arg-type]
    (folders.run_folder(home, "study") / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has finished.*start=\w+` trains it further"):
        folders.start_run(control, home, "study", compose([]).config, resume=True)  # type: ignore[arg-type]
    assert len(control.sent) == 1


def test_a_task_of_another_run_of_flower_is_not_served(home: Path) -> None:
    folders.start_run(Recorder(), home, "study", compose([]).config, resume=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="as Flower's run 7, not 8"):
        folders.stored_config(home, "study", 8)


def test_a_tracking_address_that_others_can_read_is_not_used(home: Path) -> None:
    folders.start_run(Recorder(), home, "study", compose([f"tracking.uri={URI}"]).config, resume=False)  # type: ignore[arg-type]
    (home / "runs" / "study" / folders.TRACKING).chmod(0o644)
    with pytest.raises(IdentityError, match="expected 0600"):
        folders.stored_config(home, "study", 7)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\nb", "\x1b[2J", "-x", "a b", "x" * 129])
def test_a_name_that_is_none_starts_nothing(home: Path, name: str) -> None:
    control = Recorder()
    with pytest.raises(ConfigError):
        folders.start_run(control, home, name, compose([]).config, resume=False)  # type: ignore[arg-type]
    assert not control.sent and not (home / "runs").exists()


@pytest.mark.parametrize(
    "value",
    ["/home/agency", "sqlite:///x", "user:pw@host", "a b", "", {"a": "b"}, ["a"], 1.5, None, "x" * 512],
)
def test_nothing_but_names_and_numbers_leaves_by_a_run(home: Path, value: object) -> None:
    ensure_secret(home / LOOPBACK_SECRET)
    with ControlClient(home, free_port()) as control, pytest.raises(ConfigError):  # not ServiceError: nothing was asked
        control.start_run({"name": "study", "config": value})


def test_what_is_stored_is_the_configuration_but_for_the_credentials(home: Path) -> None:
    config = compose([f"tracking.uri={URI}"]).config
    folders.start_run(Recorder(), home, "study", config, resume=False)  # type: ignore[arg-type]
    kept = json.loads((home / "runs" / "study" / folders.STATE).read_text())["config"]
    assert kept["tracking"].pop("uri") == "postgresql://db.internal/x"
    whole = json.loads(json.dumps(dataclasses.asdict(config)))
    assert whole["tracking"].pop("uri") == URI
    assert kept == whole


def test_a_run_that_finishes_while_it_is_looked_at_has_not_failed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.start_run(Recorder(), home, "study", compose([]).config, resume=False)  # type: ignore[arg-type]
    folder = folders.run_folder(home, "study")

    def ends(_: Path) -> bool:
        """The coordinator says that it has finished, and is gone, after its state was read."""
        folders.write_state(folder, state, "finished")
        return False

    state = json.loads((folder / folders.STATE).read_text())
    folders.write_state(folder, state, "running")
    monkeypatch.setattr(folders, "is_held", ends)
    assert folders.read_run(home, "study")["status"] == "finished"
    folders.write_state(folder, state, "running")
    monkeypatch.undo()
    assert folders.read_run(home, "study")["status"] == folders.INTERRUPTED
    folders.write_state(folder, state, "running", "the disk is full")
    with folders.lock(folder):
        assert folders.read_run(home, "study")["status"] == "running"


def test_a_line_that_the_power_cut_off_is_no_round(home: Path) -> None:
    """Seen: no such run could be resumed."""
    folders.start_run(Recorder(), home, "study", compose([]).config, resume=False)  # type: ignore[arg-type]
    file = folders.run_folder(home, "study") / "rounds.jsonl"
    for torn in ('{"round": 2, "particip', "\0" * 40 + "\n", '{"round": 2\n'):
        file.write_text('{"round": 1, "participants": []}\n' + torn)
        assert [line["round"] for line in read_rounds(file.parent)] == [1]


def test_a_damaged_state_holds_up_neither_the_other_runs_nor_the_end_of_their_coordinators(home: Path) -> None:
    for name in ("damaged", "whole"):
        folders.start_run(Recorder(), home, name, compose([]).config, resume=False)  # type: ignore[arg-type]
    (folders.run_folder(home, "damaged") / folders.STATE).write_text("{}")
    state = folders.read_state(home, "whole")
    folders.write_state(folders.run_folder(home, "whole"), {**state, "pid": 2**22 + 1}, "running")
    with folders.lock(folders.run_folder(home, "damaged")), folders.lock(folders.run_folder(home, "whole")):
        end_coordinators(home, "sovfed.server.runs.app", 0.1)
        Recovery(home, Recorder()).step()  # type: ignore[arg-type]
    assert folders.read_run(home, "whole")["status"] == folders.INTERRUPTED


def test_who_looks_whether_a_run_is_held_does_not_hold_it(home: Path) -> None:
    folders.start_run(Recorder(), home, "study", compose([]).config, resume=False)  # type: ignore[arg-type]
    folder = folders.run_folder(home, "study")
    with (folder / "lock").open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)  # as another who looks at the same moment
        assert not folders.is_held(folder)
    with folders.lock(folder):
        assert folders.is_held(folder)


def test_a_start_that_is_no_file_or_would_fill_the_memory_is_refused_at_once(home: Path, tmp_path: Path) -> None:
    """What came from another machine: as long as no model may be, or a pipe, which was waited for."""
    folder, huge, pipe = private_directory(tmp_path / "run"), tmp_path / "huge", tmp_path / "pipe"
    with huge.open("wb") as file:
        file.truncate((1 << 35) + 1)
    os.mkfifo(pipe)
    for start in (huge, pipe, tmp_path / "missing", "no-such-run", "../../etc"):
        with pytest.raises(ConfigError):
            folders._with_own_start(home, folder, compose([f"task.start={start}"]).config)
    assert not any(folder.iterdir())


@pytest.mark.parametrize("content", [b"", b"{", bytes(300), b"[]", b"null", b"{}", b'{"status": null}'])
def test_a_damaged_run_hides_no_other_and_says_what_to_do(home: Path, content: bytes) -> None:
    """Seen: one empty file, and neither list, console nor metrics told anything of any run."""
    for name in ("lost", "sound"):
        folders.start_run(Recorder(), home, name, compose([]).config, resume=False)  # type: ignore[arg-type]
    path = folders.run_folder(home, "lost") / folders.STATE
    path.write_bytes(content)
    runs = {run["name"]: run for run in folders.read_runs(home)}
    assert (runs["sound"]["status"], runs["lost"]["status"]) == (folders.STARTING, folders.DAMAGED)
    assert str(path) in runs["lost"]["reason"] and "restore it from a backup" in runs["lost"]["reason"]
    assert runs["lost"].keys() == runs["sound"].keys()
    with pytest.raises(ConfigError, match="is damaged"):
        folders.read_run(home, "lost")
    with pytest.raises(ConfigError, match="is damaged"):  # and its name is not begun anew over what is left
        folders.start_run(Recorder(), home, "lost", compose([]).config, resume=True)  # type: ignore[arg-type]


def test_settings_of_a_run_that_no_version_wrote_are_damaged(home: Path) -> None:
    folders.start_run(Recorder(), home, "study", compose([]).config, resume=False)  # type: ignore[arg-type]
    path = folders.run_folder(home, "study") / folders.STATE
    path.write_text(json.dumps({**json.loads(path.read_text()), "config": {"task": []}}))
    assert folders.read_runs(home)[0]["status"] == folders.DAMAGED


def test_a_line_of_rounds_that_is_no_object_ends_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n[]\n{"round": 2}\n')
    assert read_rounds(tmp_path) == [{"round": 1}]
