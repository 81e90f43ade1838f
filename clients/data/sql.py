"""A database's rows by SQLAlchemy. URL and query stand in the institution's own files; no run ever brings either.

The URL's file has mode 0600, since a password may stand in it. Rows are streamed by the server where it can, in a
transaction that only reads. What a database says of an error may hold values, so only the kind of error is told.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data.files import read_file
from sovfed.clients.data.tables.connect import connector
from sovfed.clients.data.tables.source import Batch
from sovfed.clients.data.tables.values import cells_of
from sovfed.federation.errors import ConfigError, DataError, IdentityError
from sovfed.federation.files import read_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import CursorResult, Engine

    from sovfed.clients.data.tables.report import Report
    from sovfed.federation.config import DataConfig

ROWS: Final = 1 << 13  # that are fetched at once
MAX_QUERY: Final = 1 << 20  # bytes
DRIVERS: Final = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}  # which driver a plain URL means


class Sql:
    """The rows of one query."""

    word = "row"
    spells_lists = True
    decimal = "."

    def __init__(self, config: DataConfig) -> None:
        self._engine = _engine(config)
        self._query = _query(config)
        self.where = f"{self._engine.dialect.name} database of {config.url_file}"
        self.header: Sequence[str] = self._columns()

    def batches(self, wanted: Sequence[int], numeric: Sequence[int], report: Report) -> Iterator[Batch]:
        row = 1
        with self._result(self._query) as result:
            while rows := result.fetchmany(ROWS):
                lines = np.arange(row, row + len(rows), dtype=np.int64)
                row += len(rows)
                cells = [
                    cells_of([record[position] for record in rows], numeric=position in numeric) for position in wanted
                ]
                yield Batch(cells, lines)

    def _columns(self) -> tuple[str, ...]:
        """The names of the query's columns; not one row is asked for."""
        nothing = f"SELECT * FROM ({self._query}\n) AS sovfed_query WHERE 1 = 0"  # noqa: S608 - the institution's own
        with self._result(nothing) as result:
            return tuple(result.keys())

    @contextmanager
    def _result(self, query: str) -> Iterator[CursorResult[Any]]:
        """What the database answers, in a transaction that only reads and is given up at the end. Raises DataError."""
        from sqlalchemy.exc import SQLAlchemyError

        options: dict[str, Any] = {"stream_results": True, "max_row_buffer": ROWS, "no_parameters": True}
        if self._engine.dialect.name == "postgresql":
            options["postgresql_readonly"] = True
        try:
            with self._engine.connect() as connection:
                if self._engine.dialect.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA query_only = ON")
                with closing(connection.execution_options(**options).exec_driver_sql(query)) as result:
                    yield result
        except SQLAlchemyError as error:
            raise self._failed(error) from None
        finally:
            self._engine.dispose()

    def _failed(self, error: Exception) -> DataError:
        origin = getattr(error, "orig", None)
        code = getattr(origin, "sqlstate", None) or getattr(origin, "sqlite_errorname", None) or ""
        name = type(origin or error).__name__
        return DataError(
            f"{self.where}: {name} {code}: the query cannot be answered; try it with the database's own tool"
        )


def _engine(config: DataConfig) -> Engine:
    """The database of the private file. Raises DataError; its URL is never told."""
    from sqlalchemy import create_engine
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    if config.url_file is None:
        raise DataError("data.source 'sql' needs data.url_file: a file of mode 0600 with the database's URL")
    try:
        text = read_private(Path(config.url_file).expanduser()).decode().strip()
    except (IdentityError, UnicodeDecodeError) as error:
        raise DataError(f"data.url_file: {error}") from None
    try:
        url = make_url(text)
        url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
        if url.drivername.startswith("sqlite") and url.database and not Path(url.database).is_file():
            raise DataError(f"data.url_file {config.url_file}: it names an SQLite file that is not there")
        return create_engine(url, poolclass=NullPool, hide_parameters=True)
    except ImportError as error:
        raise DataError(
            f"the database's driver '{error.name}' is not installed; for PostgreSQL: pip install 'sovfed[postgresql]'"
        ) from None
    except (SQLAlchemyError, ValueError):
        raise DataError(
            f"data.url_file {config.url_file}: no database URL, as in postgresql://user:password@host/name"
        ) from None


def _query(config: DataConfig) -> str:
    """The query of the institution's settings. Raises ConfigError or DataError."""
    if (config.query is None) == (config.query_file is None):
        raise ConfigError("data.source 'sql' needs either data.query, a SELECT, or data.query_file, a file with one")
    if config.query is not None:
        text = config.query
    else:
        path = Path(config.query_file or "").expanduser()
        try:
            text = read_file(path, MAX_QUERY).decode()
        except UnicodeDecodeError:
            raise DataError(f"{path}: not UTF-8 text") from None
    text = text.strip().removesuffix(";").rstrip()
    if not text:
        raise ConfigError("data.query is empty")
    return text


def open_sql(config: DataConfig, names: Iterable[str]) -> Sql:
    """The configured query. Raises DataError."""
    return Sql(config)


CONNECTOR: Final = connector(open_sql, (), reads=("query", "query_file", "url_file"))
