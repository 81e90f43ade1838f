"""The database of the superlink: private, and no larger after many rounds than after a few."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from tests.server.agency import (
    Authority,
    Institution,
    make_home,
    make_institution,
    process,
    server_config,
    superlink,
    wait_until,
)
from tests.server.fleet_fixture import make_template
from tests.server.runs.test_control import executor

from sovfed.federation.files import write_private
from sovfed.server.network import state_db
from sovfed.server.network.flower_app import STATE_FILE

MIB = 2**20


def fill(path: Path, megabytes: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS blobs (content BLOB)")
        database.executemany("INSERT INTO blobs VALUES (zeroblob(?))", [(MIB,)] * megabytes)


def test_a_new_database_is_ours_alone_and_can_shrink(tmp_path: Path) -> None:
    path = tmp_path / "superlink" / "state.db"
    state_db.prepare(path)
    assert (stat.S_IMODE(path.parent.stat().st_mode), stat.S_IMODE(path.stat().st_mode)) == (0o700, 0o600)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA auto_vacuum").fetchone() == (2,)


def test_free_pages_go_back_in_steps(tmp_path: Path) -> None:
    path = tmp_path / "superlink" / "state.db"
    state_db.prepare(path)
    fill(path, 40)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM blobs")
    assert state_db.trim(path, keep_pages=0, max_steps=1) == state_db.STEP_PAGES
    state_db.trim(path, keep_pages=0)
    assert path.stat().st_size < MIB


def test_a_lapsed_lease_is_looked_for_now_and_then_and_not_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.supercore.corestate.sql_corestate import SqlCoreState

    monkeypatch.setattr(state_db, "LAPSED_EVERY_S", 600.0)
    monkeypatch.setattr(SqlCoreState, "_cleanup_expired_task_tokens", SqlCoreState._cleanup_expired_task_tokens)
    for _ in range(2):  # as every superlink of this process does
        state_db.look_for_lapsed_leases_seldom()
    path = make_template(tmp_path / "state.db")
    state = LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory()).state()
    state.get_run_status(set())
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "INSERT INTO task (task_id, run_id, type, token, pending_at, starting_at, running_at, active_until, "
            "sub_status, details) VALUES (1, 1, 'flwr-serverapp', 't', ?, ?, ?, ?, '', '')",
            ("2026-11-01 00:00:00",) * 4,
        )

    def token() -> object:
        state.get_run_status(set())
        with contextlib.closing(sqlite3.connect(path)) as database:
            return database.execute("SELECT token FROM task").fetchone()[0]

    assert token() == "t"
    monkeypatch.setattr(state_db, "LAPSED_EVERY_S", 0.0)
    assert token() is None


def test_a_database_made_without_it_is_converted(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    fill(path, 1)
    state_db.prepare(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert database.execute("SELECT count(*) FROM blobs").fetchone() == (1,)


def test_a_locked_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "superlink" / "state.db"
    state_db.prepare(path)
    fill(path, 8)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("DELETE FROM blobs")
        writer.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert state_db.trim(path, keep_pages=0) == 0
        assert time.monotonic() - started < 1
        writer.execute("ROLLBACK")
    assert state_db.trim(path, keep_pages=0) > 0


def test_flowers_connections_wait_longer_for_a_lock(tmp_path: Path) -> None:
    from flwr.supercore import sql_mixin

    names = vars(sql_mixin)
    before = names["SQLITE_PRAGMAS"]
    try:
        state_db.use_patient_pragmas()
        chosen = dict(names["SQLITE_PRAGMAS"])
    finally:
        names["SQLITE_PRAGMAS"] = before
    assert set(dict(before)) <= set(chosen)
    assert (chosen["busy_timeout"], chosen["journal_mode"]) == ("20000", "WAL")


@contextlib.contextmanager
def echoing_node(node: Institution, port: int) -> Iterator[None]:
    pem = node.node_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(node.folder / "node_key.pem", pem)
    script = Path(__file__).with_name("sample_node.py")
    command = [sys.executable, str(script), "--address", f"127.0.0.1:{port}", "--folder", str(node.folder)]
    with process(command, node.folder, node.folder / "node.log"):
        yield


@pytest.mark.deploy
@pytest.mark.parametrize(("rounds", "megabytes"), [(8, 1), (2, 24)])
def test_the_database_does_not_grow_with_rounds(tmp_path: Path, rounds: int, megabytes: int) -> None:
    authority = Authority()
    home = make_home(authority, tmp_path / "agency")
    hospital = make_institution(authority, tmp_path / "hospital", "hospital-1")
    config = server_config(home)
    with superlink(home, config) as (_, control), executor(home, config.control_port):
        control.register_node(hospital.public_key, "hospital-1")
        with echoing_node(hospital, config.fleet_port):
            wait_until(lambda: control.list_nodes()[0].status == "online", what="the node")
            run_id = control.start_run({"do": "echo", "rounds": rounds, "megabytes": megabytes})
            largest, log = 0, home / "logs" / f"coordinator-{run_id}.log"
            while not control.get_run(run_id).finished:
                for _ in range(10):
                    largest = max(largest, _size(home))
                    time.sleep(0.1)
            assert control.get_run(run_id).status == "finished:completed", log.read_text()
        assert largest < (6 * megabytes + 32) * MIB
        wait_until(lambda: _size(home) < 8 * MIB, 20, "the database's return to its resting size")


def _size(home: Path) -> int:
    return sum(path.stat().st_size for path in (home / STATE_FILE).parent.glob("state.db*"))
