"""An institution's table looked at for a task, before anybody asks: what fits, what does not, and where. No values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data import check_meant, connector, load_records
from sovfed.clients.data.tables import words
from sovfed.clients.data.tables.records import split
from sovfed.clients.data.tables.report import sentence
from sovfed.clients.data.tables.units import suspected
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import NUMBERS

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.clients.data.tables import TableRead
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Column, Schema


FEW: Final = 5  # records, fewer of which are no surprise if they are of one class


@dataclass(frozen=True)
class ColumnReport:
    """One column: counts, and the first lines of what is at fault."""

    name: str
    role: str
    kind: str
    unit: str
    missing: int
    outside: int
    unknown: int  # words that are no known category
    unreadable: int  # neither number nor date, or below a limit, or a file that does not fit
    first_lines: tuple[int, ...]
    suspicion: str = ""  # that its unit is another one
    allowed: bool = False  # whether a value may be missing


@dataclass(frozen=True)
class DataReport:
    """What `sovfed client check-data` tells."""

    where: str
    rows: int
    empty: int
    bad: int
    usable: bool  # by the declared rule for bad rows
    persons: int
    train: int
    test: int
    columns: tuple[ColumnReport, ...] = ()
    classes: dict[str, int] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    not_private: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def report(task: Task, config: DataConfig) -> DataReport:
    """Look at all of the source's records for `task`. Raises DataError where it cannot be read at all."""
    check_meant(config)
    survey = connector(config.source).survey
    if survey is None:
        return _of_records(task, config)
    read = survey(task, config)
    bad = read.report.bad
    coded = any(kind == words.CODED for _, kind in read.report.faults)
    allowed = config.max_bad_share * read.report.rows if config.bad_rows == "quarantine" and not coded else 0
    sound = _sound(read)
    names = None if read.persons is None else read.persons.filter(sound)
    table = {name: values[sound] for name, values in read.table.items()}
    extra = {name: np.array(values, object)[sound].astype("S") for name, values in read.files.items() if values}
    persons, train, test = split(
        task.name, table | {name: values for name, values in extra.items() if len(values)}, names
    )
    schema = task.schema
    columns = tuple(_column(column, read, schema) for column in schema.columns)
    by_name = {column.name: column for column in schema.columns}
    return DataReport(
        read.report.where, read.report.rows, read.report.empty, bad, bad <= allowed and len(train) + len(test) > 0,
        len(np.unique(persons)), len(train), len(test), columns, _classes(schema, table),
        tuple(sentence(by_name.get(name), name, kind, count) for (name, kind), count in read.report.faults.items()),
        tuple(read.report.notes),
        (*read.report.warnings, *_warnings(columns), *_too_many(read, config), *_one_class(schema, table)),
        read.not_private,
    )  # fmt: skip


def _of_records(task: Task, config: DataConfig) -> DataReport:
    """Of a connector that has no table: what the records themselves tell."""
    records = load_records(task, config)
    persons = len(np.unique(records.persons))
    return DataReport(
        config.source, len(records.persons), 0, 0, True, persons, len(records.train), len(records.test),
        not_private=records.not_private,
    )  # fmt: skip


def _sound(read: TableRead) -> npt.NDArray[np.bool_]:
    """Which rows have no fault."""
    if read.lines is None:
        raise DataError(f"{read.report.where}: its rows were not kept")
    bad = np.unique([line for line, _, _ in read.report.bad_lines])
    return np.isin(read.lines, bad, invert=True)


def _column(column: Column, read: TableRead, schema: Schema) -> ColumnReport:
    counts = {kind: count for (name, kind), count in read.report.faults.items() if name == column.name}
    lines = sorted({line for count in counts.values() for line in count.lines})[:5]

    def total(*kinds: str) -> int:
        return sum(counts[kind].total for kind in kinds if kind in counts)

    return ColumnReport(
        column.name, column.role, column.kind, column.unit,
        missing=total(words.MISSING) + read.report.missing.get(column.name, 0) * (column.missing != "refuse"),
        outside=total(words.OUTSIDE), unknown=total(words.UNKNOWN, words.CODED),
        unreadable=total(words.NUMBER, words.LIMIT, words.DATE, words.FILE), first_lines=tuple(lines),
        suspicion=_suspicion(column, read, schema), allowed=column.missing != "refuse",
    )  # fmt: skip


def _suspicion(column: Column, read: TableRead, schema: Schema) -> str:
    if column.kind != "number" or column.shape:
        return ""
    if column.role == "target":
        return suspected(column, read.table[column.name])
    return suspected(column, read.table[NUMBERS][:, schema.numbers.index(column)])


def _classes(schema: Schema, table: Any) -> dict[str, int]:
    """How many sound rows each class has."""
    if not schema.classes:
        return {}
    counts = np.bincount(table[schema.targets[0].name].astype(np.int64), minlength=len(schema.classes))
    return {name: int(count) for name, count in zip(schema.classes, counts, strict=False)}


def _one_class(schema: Schema, table: Any) -> list[str]:
    """That all records that can be used are of one class: nothing here tells it from the others."""
    counts = _classes(schema, table)
    there = [name for name, count in counts.items() if count]
    if len(there) != 1 or counts[there[0]] < FEW:
        return []
    return [f"every record is '{there[0]}': is the right column the target, and are its words the task's?"]


def _warnings(columns: tuple[ColumnReport, ...]) -> list[str]:
    return [column.suspicion for column in columns if column.suspicion]


def _too_many(read: TableRead, config: DataConfig) -> list[str]:
    """That rows at fault are left out, but not as many as there are."""
    bad, rows = read.report.bad, read.report.rows
    if config.bad_rows != "quarantine" or bad <= config.max_bad_share * rows:
        return []
    share = config.max_bad_share
    return [f"{bad} of {rows} rows are at fault, more than data.max_bad_share, {share:g}, lets be left out"]
