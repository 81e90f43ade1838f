"""MLflow's file: made whole or not at all, so that a run that is stopped meanwhile does not spoil the next."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sovfed.server import tracking


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
