"""MLflow's file: made whole or not at all, so that a run that is stopped meanwhile does not spoil the next."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from pathlib import Path

import pytest

from sovfed.federation import cli
from sovfed.federation.compose import compose
from sovfed.federation.config import stored
from sovfed.server.runs import tracking
from sovfed.server.runs.folders import UNSENT
from sovfed.server.runs.release import TRACKED


def tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as database:
        found = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
    database.close()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_the_database_appears_complete_and_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    tracking.make_database(path)
    assert {"experiments", "runs", "alembic_version"} <= tables(path)
    assert list(tmp_path.iterdir()) == [path]
    before = path.stat()
    tracking.make_database(path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_database_that_breaks_off_is_never_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    def break_off(uri: str) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow, "MlflowClient", break_off)
    with pytest.raises(KeyboardInterrupt):
        tracking.make_database(tmp_path / "mlflow.db")
    assert not (tmp_path / "mlflow.db").exists()


SECRET = "s3cret-pw"
URI = f"postgresql://mlflow:{SECRET}@db.internal:1/x?sslpassword={SECRET}"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (URI, "postgresql://db.internal:1/x"),
        ("https://u:p%40s3cret-pw@mlflow.example", "https://mlflow.example"),
        ("mysql+pymysql://u:a/s3cret-pw:b@h/x", "mysql+pymysql://h/x"),
        ("postgresql://u@s3cret-pw@h/x", "postgresql://h/x"),
        ("postgresql:///x?host=h&password=s3cret-pw", "postgresql:///x"),
        ("sqlite:////srv/agency/mlflow.db", "sqlite:////srv/agency/mlflow.db"),
        ("http://localhost:5000", "http://localhost:5000"),
    ],
)
def test_what_is_stored_of_an_address_has_no_credentials(uri: str, shown: str) -> None:
    config = compose([f"tracking.uri={uri}"]).config
    assert config.tracking.uri == uri
    assert stored(config)["tracking"]["uri"] == shown
    assert SECRET not in json.dumps(stored(config))
    assert stored(compose([]).config)["tracking"]["uri"] is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_neither_log_nor_params_hold_the_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)  # of 15 tries at a database, for 50 s
    uri = f"sqlite:///{tmp_path}/tracked.db?timeout=12345.75"
    tracker = tracking.Tracker(compose([f"tracking.uri={uri}"]).config, tmp_path, tmp_path, "a-run")
    tracker.finish("FINISHED", [], register=False)
    made = [path for path in tmp_path.iterdir() if path.is_file()]
    assert any(b"tracking.uri" in path.read_bytes() for path in made)
    assert not any(b"12345.75" in path.read_bytes() for path in made)
    for uri in (URI, f"sqlite:///{tmp_path}/other.db?{SECRET}={SECRET}"):  # SQLAlchemy's error names the latter
        caplog.clear()
        broken = tracking.Tracker(compose([f"tracking.uri={uri}"]).config, tmp_path, tmp_path / "b", "b-run")
        broken.finish("FINISHED", [], register=False)
        assert "MLflow tracking failed" in caplog.text and SECRET not in caplog.text


def logged(uri: str, run_id: str) -> list[int]:
    from mlflow import MlflowClient

    return [point.step for point in MlflowClient(uri).get_metric_history(run_id, "participants")]


def add_round(folder: Path, number: int) -> dict[str, float]:
    line = {"round": number, "participants": ["a", "b"], "seconds": 0.5, "metrics": {"auc": 0.9}}
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return tracking.figures(line)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_what_a_server_missed_is_sent_when_it_is_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: a server that was dead got no round at all, and a resumed run lacked those before the kill."""
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    monkeypatch.setattr(tracking, "RETRY_S", 0.0)
    (tmp_path / "away").touch()  # a file where the database's folder would be
    uri = f"sqlite:///{tmp_path}/away/mlflow.db"
    config = compose([f"tracking.uri={uri}"]).config
    tracker = tracking.Tracker(config, tmp_path, tmp_path, "a-run")
    for number in (1, 2):
        tracker.round(number, add_round(tmp_path, number))
    tracker.note({"transport": "stream"})
    while not tracker._jobs.empty():
        time.sleep(0.05)
    (tmp_path / "away").unlink()  # the database is there again
    tracker.round(3, add_round(tmp_path, 3))
    tracker.finish("FINISHED", [], register=False)
    assert logged(uri, tracker.run_id) == [1, 2, 3]
    assert not (tmp_path / UNSENT).exists()
    add_round(tmp_path, 4)  # a coordinator died before it was sent
    resumed = tracking.Tracker(config, tmp_path, tmp_path, "a-run")
    resumed.round(5, add_round(tmp_path, 5))
    resumed.finish("FINISHED", [], register=False)
    assert resumed.run_id == tracker.run_id
    assert logged(uri, tracker.run_id) == [1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_a_round_that_is_run_again_is_told_as_it_went_the_last_time(tmp_path: Path) -> None:
    """Seen: the agency was killed between a round and its checkpoint, and MLflow kept the first try's figures."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for number in (1, 2):
        add_round(tmp_path, number)
    resumed = tracking.Tracker(compose([f"tracking.uri={uri}"]).config, tmp_path, tmp_path, "a-run")
    resumed.catch_up(1)  # the checkpoint's round
    while not resumed._jobs.empty():
        time.sleep(0.05)
    resumed.round(2, {"seconds": 7.5})
    resumed.finish("FINISHED", [], register=False)
    from mlflow import MlflowClient

    history = MlflowClient(uri).get_metric_history(resumed.run_id, "seconds")
    assert sorted(point.step for point in history) == [1, 2]
    assert next(point.value for point in history if point.step == 2) == 7.5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_a_server_that_is_away_to_the_end_holds_up_nothing_and_gets_all_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 1)
    monkeypatch.chdir(tmp_path)  # where MLflow puts artefacts, if nobody says where
    (tmp_path / "away").touch()  # a file where the database's folder would be
    uri = f"sqlite:///{tmp_path}/away/mlflow.db"
    config = compose([f"tracking.uri={uri}"]).config
    tracker = tracking.Tracker(config, tmp_path, tmp_path, "a-run")
    tracker.round(1, add_round(tmp_path, 1))
    while not tracker._jobs.empty():
        time.sleep(0.05)
    before = time.monotonic()
    tracker.finish("FINISHED", [tmp_path / "rounds.jsonl"], register=False)
    assert time.monotonic() - before < 5
    assert not tracking.send(config, tmp_path, tmp_path)
    (tmp_path / "away").unlink()
    assert tracking.send(config, tmp_path, tmp_path)
    run_id = (tmp_path / TRACKED).read_text()
    assert logged(uri, run_id) == [1]
    from mlflow import MlflowClient

    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
    assert [file.path for file in MlflowClient(uri).list_artifacts(run_id)] == ["rounds.jsonl"]


def test_a_version_of_a_package_s_task_says_how_it_is_used() -> None:
    config = compose([]).config
    assert tracking.how_to_load(config, "a-run") is None
    task = dataclasses.replace(config.task, name="sepsis", file="/runs/a-run/task.sovtask")
    told = tracking.how_to_load(dataclasses.replace(config, task=task), "a-run")
    assert told is not None and "sovfed model predict a-run TABLE" in told and "sealed" in told


def test_config_show_has_no_credentials() -> None:
    from click.testing import CliRunner

    for form in ([], ["--json"]):
        shown = CliRunner().invoke(cli.config, ["show", f"tracking.uri={URI}", *form]).output
        assert "db.internal" in shown and SECRET not in shown
