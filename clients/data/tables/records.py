"""A table that was read as an institution's records: who is a person, what is held out, and what is said of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow.compute as pc

from sovfed.clients.data import Records
from sovfed.clients.data.split import HELD_OUT, by_content, uniform
from sovfed.clients.data.tables.opt_out import remaining
from sovfed.clients.data.tables.report import COLUMNS
from sovfed.clients.data.tables.units import suspicion
from sovfed.federation.config import BAD_ROWS
from sovfed.federation.files import open_plain, write_private
from sovfed.federation.text import visible

if TYPE_CHECKING:
    import pyarrow as pa

    from sovfed.clients.data import Indices
    from sovfed.clients.data.tables import TableRead
    from sovfed.clients.data.tables.report import Report
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Schema, Table

HEADER: Final = "line,column,fault"  # of the list of bad rows
log = logging.getLogger(__name__)


def as_records(task: Task, read: TableRead, config: DataConfig) -> Records:
    """The records of a table, with the held-out part chosen by person, of rows without one by their content."""
    persons, train, test = split(task.name, read.table, read.persons)
    train, test = remaining(config, read.persons, train, test)
    return Records(
        read.table, persons, train, test, several_records=read.persons is not None, not_private=read.not_private
    )


def split(salt: str, table: Table, names: pa.ChunkedArray | None) -> tuple[Indices, Indices, Indices]:
    """Each row's person as a number, the rows that train and those held out: neither depends on any other person."""
    if names is None:
        held_out = by_content(salt, table)
        return np.arange(len(held_out)), np.flatnonzero(~held_out), np.flatnonzero(held_out)
    coded = pc.dictionary_encode(names).combine_chunks()
    out = uniform(f"{salt}/held-out", (name.as_py() for name in coded.dictionary)) < HELD_OUT
    persons = coded.indices.to_numpy(zero_copy_only=False)
    held_out = out[persons] if len(persons) else np.zeros(0, bool)
    return persons.astype(np.int64), np.flatnonzero(~held_out), np.flatnonzero(held_out)


def settle(schema: Schema, config: DataConfig, read: TableRead) -> None:
    """Say in the log how the table was read, and write its bad rows beside it. Never a value."""
    report = read.report
    if read.places.suspects and read.places.person is None:
        advice = "" if read.places.declared else "; until data.person says who is a person, no private run may use it"
        report.warnings.append(
            f"{_listed(read.places.suspects)} looks like a column of persons, yet each row counts as another one"
            + advice
        )
    report.warnings += suspicion(schema, read.table)
    for note in report.notes:
        log.info("%s: %s", visible(report.where), visible(note))
    for warning in report.warnings:
        log.warning("%s: %s", visible(report.where), visible(warning))
    if report.empty:
        log.info("%s: %d empty rows", visible(report.where), report.empty)
    if report.bad:
        path = write_bad_rows(report, config)
        log.warning("%s: %d of %d rows left out%s", visible(report.where), report.bad, report.rows, path)


def write_bad_rows(report: Report, config: DataConfig) -> str:
    """Write line, column and fault of each bad row to a private file, and say where; never a value."""
    site = f".{config.site}" if config.site_column else ""
    path = Path(config.bad_rows_file or f"{report.where}{site}{BAD_ROWS}").expanduser()
    lines = [f'{line},"{_quoted(column)}",{kind}' for line, column, kind in sorted(report.bad_lines)]
    if not _is_such_a_list(path):
        return f"; they are not written to {path}, which is another file: set data.bad_rows_file"
    try:
        write_private(path, "\n".join([HEADER, *lines, ""]).encode())
    except OSError as error:
        return f"; they could not be written to {path} ({error.strerror}): set data.bad_rows_file"
    return f"; they are listed in {path}"


def _is_such_a_list(path: Path) -> bool:
    """Whether what is at `path` may be written anew: it is a list of bad rows, or nothing.

    Settings that come from somebody else may name any file.
    """
    try:
        with open_plain(path) as file:
            return file.read(len(HEADER) + 1) in (b"", f"{HEADER}\n".encode())
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _quoted(text: str) -> str:
    return visible(text).replace('"', '""')


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"'{visible(name)[:64]}'" for name in names[:COLUMNS])
