"""Flower's database across its versions: a copy before a change, and a clear word where an older Flower meets it."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.alembic.utils import FLWR_STATE_BASELINE_REVISION, build_alembic_config
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import create_engine

from sovfed.federation.errors import ServiceError
from sovfed.server.network.state_migration import _known, keep_copy_before_change

FLOWER_1_41 = "d90a2f91f23c"  # where Flower 1.41 left its tables


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def at(database: Path, revision: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
        connection.execute("CREATE TABLE node (id INTEGER)")
        connection.execute("INSERT INTO node VALUES (7)")


def test_the_installed_flower_has_one_latest_revision() -> None:
    known, latest = _known()
    assert latest in known
    assert FLWR_STATE_BASELINE_REVISION in known


def test_a_new_database_and_one_of_this_version_need_no_copy(database: Path) -> None:
    database.touch()
    assert keep_copy_before_change(database) is None
    at(database, _known()[1])
    assert keep_copy_before_change(database) is None
    assert [path.name for path in database.parent.iterdir()] == ["state.db"]


def test_one_that_will_be_changed_is_copied_for_us_alone(database: Path) -> None:
    at(database, FLWR_STATE_BASELINE_REVISION)
    for _ in range(2):  # also where a start was interrupted
        copy = keep_copy_before_change(database)
        assert copy == database.with_name(f"state.db.{FLWR_STATE_BASELINE_REVISION}")
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("SELECT id FROM node").fetchall() == [(7,)]


def test_one_of_flower_1_41_is_taken_over_with_its_nodes_and_kept_for_the_way_back(database: Path) -> None:
    command.upgrade(build_alembic_config(create_engine(f"sqlite:///{database}")), FLOWER_1_41)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("INSERT INTO node (node_id, status, public_key) VALUES (7, 'online', x'0a')")
        before = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    assert keep_copy_before_change(database) == database.with_name(f"state.db.{FLOWER_1_41}")
    state = LinkStateFactory(str(database), NoOpFederationManager(), ObjectStoreFactory()).state()
    assert state.get_node_id_by_public_key(b"\n") == 7
    assert keep_copy_before_change(database) is None, "it is of this version now"
    with closing(sqlite3.connect(database.with_name(f"state.db.{FLOWER_1_41}"))) as copy:
        assert copy.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall() == before
        assert copy.execute("SELECT node_id FROM node").fetchall() == [(7,)]


def test_one_that_a_newer_flower_changed_is_refused_with_the_way_back(database: Path) -> None:
    at(database, "ffffffffffff")
    (database.parent / "state.db.before").touch()
    with pytest.raises(ServiceError, match=r"newer Flower \(revision ffffffffffff.*state\.db\.before"):
        keep_copy_before_change(database)
