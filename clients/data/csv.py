"""A CSV file whose header names the task's columns: the connector for an institution's own export."""

from __future__ import annotations

import csv
import io
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Connector, Records, table_of
from sovfed.clients.data.files import read_file, unreadable
from sovfed.clients.data.split import by_person, row_names
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task

MAX_BYTES: Final = 1 << 30
PERSON: Final = "person"  # the column's name where neither data.person nor the task's schema gives one
ROW: Final = "row"  # as data.person: each row is another person
NOBODY: Final = ("", "-", "<na>", "#n/a", "n/a", "na", "nan", "nat", "none", "null")  # how tools write a missing name
MAX_HEADER: Final = 1 << 20
UNDECLARED: Final = (
    f"nothing says whose a row is: the file has no column '{PERSON}'. Name the column of persons with data.person, or, "
    f"if each row is another person, declare that with data.person={ROW}"
)


def load(task: Task, config: DataConfig) -> Records:
    """The records of the UTF-8 file `config.path`: the schema's features, label (a class number) and person column.

    Other columns are ignored. The held-out part is chosen by person, of rows without one by their content: neither
    depends on what else the file holds. Raises DataError.
    """
    path = _path(config)
    try:
        text = read_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(rows, [])
    numbers, person = _columns(task, config, header, path)
    values: list[list[float]] = []
    names: list[str] = []
    try:
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{path}, line {rows.line_num}: {len(row)} columns, expected {len(header)}")
            values.append([_number(task, header[column], row[column]) for column in numbers])
            if person is not None:
                names.append(person_name(row[person]))
    except csv.Error:
        raise DataError(f"{path}, line {rows.line_num}: malformed CSV") from None
    except _NotNumberError as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from None
    table = np.array(values, dtype=np.float64).reshape(-1, len(numbers))
    if person is None:
        names = row_names(row.tobytes() for row in table)
    return _records(
        task, table, names, path, several=person is not None, declared=person is not None or _by_row(config)
    )


class _NotNumberError(Exception):
    """Names the column, never the value."""


def _number(task: Task, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(task.schema.classes[:4]))
    hint = f"; classes are told by number: {classes}" if column == task.schema.targets[0].name else ""
    raise _NotNumberError(f"column '{column}' is not a number{hint}")


def person_name(cell: str) -> str:
    """The name in a cell as it is compared: in Unicode's NFC, without spaces around it, and each within it as one."""
    return " ".join(unicodedata.normalize("NFC", cell).split())


def declares_persons(task: Task, config: DataConfig) -> bool:
    """Whether the settings and the file's header say who is a person. Raises DataError; reads no record."""
    path = _path(config)
    try:
        with path.open("rb") as file:
            text = file.readline(MAX_HEADER).decode("utf-8-sig")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: its first line is not UTF-8 text") from None
    header = next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
    return _columns(task, config, header, path)[1] is not None or _by_row(config)


def _path(config: DataConfig) -> Path:
    if not config.path:
        raise DataError("data.source 'csv' needs data.path: the file")
    return Path(config.path).expanduser()


def _by_row(config: DataConfig) -> bool:
    return config.person == ROW


def _columns(task: Task, config: DataConfig, header: list[str], path: Path) -> tuple[list[int], int | None]:
    """Where the features and the label stand, and where the person."""
    wanted = [column.name for column in (*task.schema.inputs, *task.schema.targets)]
    missing = [name for name in wanted if name not in header]
    if missing or len(set(header)) != len(header):
        problem = f"lacks columns {missing}" if missing else "names a column twice"
        problem += ", or its separator is no comma" if len(header) == 1 else ""
        raise DataError(f"{path}: the header {problem}; task '{task.name}' needs {len(wanted)} columns")
    person = task.schema.person or PERSON
    if _by_row(config):
        if found := [name for name in (person, ROW) if name in header] or task.schema.person:
            raise DataError(f"{path}: data.person is '{ROW}', each row another person, yet there is a column {found}")
    elif config.person:
        person = config.person
    if person not in header and not _by_row(config) and (config.person or task.schema.person):
        raise DataError(f"{path}: the header lacks the person column '{person}' of task '{task.name}'")
    return [header.index(name) for name in wanted], header.index(person) if person in header else None


def _records(
    task: Task, table: npt.NDArray[np.float64], names: list[str], path: Path, *, several: bool, declared: bool
) -> Records:
    labels = table[:, -1]
    if not np.array_equal(labels, np.rint(labels)):
        raise DataError(f"{path}: column '{task.schema.targets[0].name}' holds values that are no class numbers")
    if nobody := sum(name.casefold() in NOBODY for name in names):  # together they would count as one person
        raise DataError(f"{path}: {nobody} rows name no person")
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    train, test = by_person(task.name, names)
    persons = np.array([codes[name] for name in names], dtype=np.int64)
    return Records(
        table_of(task.schema, table[:, :-1], labels), persons, train, test, several, "" if declared else UNDECLARED,
    )  # fmt: skip


def obstacle(task: Task, config: DataConfig) -> str:
    """Why no private run may use the file, as far as its header tells."""
    return "" if declares_persons(task, config) else UNDECLARED


CONNECTOR: Final = Connector(load, obstacle=obstacle)
