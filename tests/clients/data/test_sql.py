"""Databases: real SQLite, and a real PostgreSQL that the test starts."""

from __future__ import annotations

import dataclasses
import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.clients.data.cases import SMALL, rows

from sovfed.clients.data import check_private_data, load_records, natural_sites
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLE = "CREATE TABLE visits (age REAL, dose NUMERIC, ill TEXT, patient TEXT, ward TEXT, born DATE)"
ROW = "INSERT INTO visits VALUES (%s, %s, '%s', '%s', '%s', '1970-01-02')"
QUERY = "SELECT age, dose, ill, patient, ward FROM visits WHERE ward NOT LIKE '%x%' ORDER BY patient; "
ROWS = [(50.5, 1.25, "no", "p1", "a"), (61, 0.5, "yes", "p2", "b"), (47, 2, "no", "p3", "b"), (1, 1, "no", "p4", "x")]
EXPECTED = [[50.5, 1.25, 0], [61, 0.5, 1], [47, 2, 0]]


@pytest.fixture
def sqlite(tmp_path: Path) -> DataConfig:
    with sqlite3.connect(tmp_path / "ward.db") as database:
        database.execute(TABLE)
        for row in ROWS:
            database.execute(ROW % row)
    database.close()
    return _config(tmp_path, f"sqlite:///{tmp_path / 'ward.db'}")


def _config(folder: Path, url: str) -> DataConfig:
    path = folder / "url"
    path.write_text(url + "\n")
    path.chmod(0o600)
    return DataConfig(source="sql", url_file=str(path), query=QUERY)


def test_a_query_gives_the_records(sqlite: DataConfig) -> None:
    records = load_records(SMALL, sqlite)
    assert rows(records) == EXPECTED
    assert records.persons.tolist() == [0, 1, 2]
    check_private_data(SMALL, sqlite)


def test_the_query_may_stand_in_a_file(sqlite: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "query.sql").write_text(f"-- of all wards\n{QUERY}")
    assert (
        rows(load_records(SMALL, dataclasses.replace(sqlite, query=None, query_file=str(tmp_path / "query.sql"))))
        == EXPECTED
    )
    for both in (dataclasses.replace(sqlite, query=None), dataclasses.replace(sqlite, query_file="x")):
        with pytest.raises(ConfigError, match=r"either data\.query"):
            load_records(SMALL, both)


def test_sites_may_be_a_column(sqlite: DataConfig) -> None:
    config = dataclasses.replace(sqlite, site_column="ward", site="b")
    assert natural_sites(config) == ("a", "b")
    assert len(load_records(SMALL, config).persons) == 2


def test_a_file_with_a_password_must_be_private(sqlite: DataConfig) -> None:
    Path(sqlite.url_file or "").chmod(0o640)
    with pytest.raises(DataError, match="expected 0600"):
        load_records(SMALL, sqlite)


@pytest.mark.parametrize(
    ("query", "said"),
    [("SELECT age FROM nowhere", "OperationalError"),
        ("DROP TABLE visits", "OperationalError"),
        ("SELECT age FROM visits", "lacks 2 columns"),
    ],
)  # fmt: skip
def test_a_wrong_query_is_told_without_its_words(sqlite: DataConfig, query: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_records(SMALL, dataclasses.replace(sqlite, query=query, person="age"))
    assert "nowhere" not in str(caught.value)
    assert len(load_records(SMALL, sqlite).persons) == 3


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("no url", "no database URL"),
        ("sqlite:////nowhere.db", "SQLite file that is not there"),
        ("oracle+cx_oracle://scott:tiger@host/x", "driver 'cx_Oracle' is not installed"),
        ("postgresql://scott:tiger@127.0.0.1:1/x?connect_timeout=2", "OperationalError"),
    ],
)
def test_a_database_that_is_not_there_is_told_without_its_password(tmp_path: Path, url: str, said: str) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg", reason="no driver for PostgreSQL is installed")
    with pytest.raises(DataError, match=said) as caught:
        load_records(SMALL, _config(tmp_path, url))
    assert "tiger" not in str(caught.value)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Path]:
    """The folder of a PostgreSQL's socket. Started as an unprivileged user, as it demands, and stopped at the end."""
    programs = {name: shutil.which(name) for name in ("initdb", "pg_ctl", "psql")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"PostgreSQL is not installed: no {missing[0]}")
    user: dict[str, str] = {}
    if os.geteuid() == 0:
        try:
            user = {"user": pwd.getpwnam("nobody").pw_name, "group": "nogroup"}
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user 'nobody'")
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        folder.chmod(0o700)
        if user:
            shutil.chown(folder, user["user"])

        def call(program: str, *arguments: str) -> None:
            subprocess.run(
                [str(programs[program]), *arguments], check=True, capture_output=True, cwd=folder, timeout=60, **user
            )  # type: ignore[call-overload]

        data = folder / "data"
        call("initdb", "-D", str(data), "-A", "trust", "-U", "clinic", "--no-sync", "-E", "UTF8", "--no-instructions")
        call(
            "pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o",
            f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off", "start",
        )  # fmt: skip
        try:
            for statement in [TABLE, *(ROW % row for row in ROWS)]:
                call("psql", "-h", str(folder), "-U", "clinic", "-d", "postgres", "-c", statement)
            yield folder
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def test_postgresql_gives_the_same_records(postgresql: Path, tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL is installed")
    config = _config(tmp_path, f"postgresql://clinic@/postgres?host={postgresql}")
    records = load_records(SMALL, config)
    assert rows(records) == EXPECTED
    assert records.persons.tolist() == [0, 1, 2]
    large = dataclasses.replace(
        config, query="SELECT i % 100 AS age, 1 AS dose, 'ja' AS ill, i AS patient FROM generate_series(1, 30000) i"
    )
    assert len(load_records(SMALL, large).persons) == 30_000


def test_postgresql_is_only_read_and_its_errors_hold_no_value(postgresql: Path, tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="no driver for PostgreSQL is installed")
    config = _config(tmp_path, f"postgresql://clinic@/postgres?host={postgresql}")
    query = "WITH gone AS (DELETE FROM visits RETURNING *) SELECT age, dose, ill, patient FROM gone"
    for text in (query, "SELECT 'Ada'::int AS age, 1 AS dose, 0 AS ill, 1 AS patient"):
        with pytest.raises(DataError, match="the query cannot be answered") as caught:
            load_records(SMALL, dataclasses.replace(config, query=text))
        assert "Ada" not in str(caught.value)
    assert len(load_records(SMALL, config).persons) == 3
