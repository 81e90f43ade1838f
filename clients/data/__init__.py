"""Data connectors: each turns an institution's own files into a checked `Dataset`. One file a connector.

A DataError says which file, line and column is wrong, never a value; only its code crosses the wire. Connectors are
found as entry points `sovfed.connectors`, our own like a stranger's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from sovfed.federation import plugins
from sovfed.federation.errors import ConfigError, DataError, PrivacyError
from sovfed.federation.files import stamp
from sovfed.federation.tasks.columns import CODES, MISSING_CODE, NUMBERS, REFUSE

if TYPE_CHECKING:
    from sovfed.clients.data.tables import TableRead
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Column, Schema, Table

GROUP: Final = "sovfed.connectors"
PARTICULAR: Final = ("query", "query_file", "url_file", "table")  # settings that most connectors have no use for
LIMITED: Final = (
    "data.limit takes a sample in which one person's coming is another's going; a private run needs all records "
    "(data.limit=null)"
)
CHECKED: Final = 1 << 12  # records that are checked at once
Indices = npt.NDArray[np.int64]


class Dataset(Protocol):
    """An institution's records of one task, decoded when they are asked for: never a copy of all.

    `persons` [n] (equal number: same person), `train` and `test` disjoint rows. `several_records` declares whether a
    person may have more than one; it is never counted, since one person's coming would change it for all.
    `not_private` says why no private run may use them, "" if it may: then adding or removing a person adds or removes
    that person's rows and moves no other person's from one part to the other.
    """

    @property
    def persons(self) -> Indices: ...

    @property
    def train(self) -> Indices: ...

    @property
    def test(self) -> Indices: ...

    @property
    def several_records(self) -> bool: ...

    @property
    def not_private(self) -> str: ...

    def take(self, rows: Indices) -> Table:
        """The records at `rows`, as the schema stores them (`Schema.stored`)."""


@dataclass(frozen=True, repr=False, eq=False)
class Records:
    """A `Dataset` whose arrays (in memory, or mapped from a file) are all there; its text form shows counts only."""

    columns: Table
    persons: Indices
    train: Indices
    test: Indices
    several_records: bool = True
    not_private: str = ""

    def __len__(self) -> int:
        return len(self.persons)

    def __repr__(self) -> str:
        persons = len(np.unique(self.persons))
        return f"<{len(self)} records of {persons} persons: {len(self.train)} train, {len(self.test)} held out>"

    def take(self, rows: Indices) -> Table:
        return {name: values[rows] for name, values in self.columns.items()}


@dataclass(frozen=True)
class Connector:
    """How records of a source are read. `load` returns what the schema of a task stores, checked by `load_records`."""

    load: Callable[[Task, DataConfig], Dataset]
    sites: Callable[[DataConfig], tuple[str, ...]] = lambda _config: ()  # the real institutions in the source, if any
    obstacle: Callable[[Task, DataConfig], str] = lambda _task, _config: ""  # to privacy, before a record is read
    task: str = ""  # the one task that it has records of; "": whichever fits
    opts_out: bool = False  # whether `load` leaves out the persons of data.opt_out
    cuts: bool = False  # whether data.site, a number, chooses one of data.sites made-up parts
    survey: Callable[[Task, DataConfig], TableRead] | None = None  # all rows with what is wrong, for `check-data`
    reads: tuple[str, ...] | None = None  # which of `PARTICULAR`; another one is refused. None: any may be meant for it


def sources() -> tuple[str, ...]:
    """Every connector that is installed here, in alphabetical order."""
    return tuple(sorted(plugins.installed(GROUP)))


def described() -> dict[str, str]:
    """Every connector with the first sentence of its module. One that cannot be loaded says so."""
    import sys

    descriptions = {}
    for name in sources():
        try:
            connector(name)
            text = sys.modules[plugins.installed(GROUP)[name].module].__doc__ or ""
        except ConfigError as error:
            text = str(error)
        descriptions[name] = text.strip().split("\n\n")[0].replace("\n", " ")
    return descriptions


@cache
def connector(source: str) -> Connector:
    """The connector called `source`. Raises ConfigError with the nearest known name."""
    loaded = plugins.load(GROUP, "data.source", source, sources())
    if not isinstance(loaded, Connector):
        raise ConfigError(f"{plugins.installed(GROUP)[source].value} is no Connector")
    return loaded


def load_records(task: Task, config: DataConfig) -> Dataset:
    """The institution's records for `task`, checked against its schema. Raises DataError saying what is wrong."""
    if config.opt_out is not None and not connector(config.source).opts_out:
        raise DataError(f"data.opt_out: the source '{config.source}' cannot leave persons out; take it away from there")
    check_meant(config)
    records = connector(config.source).load(task, config)
    check(records, task.schema, f"{config.source}, site {config.site}")
    return records if config.limit is None else sample(records, config.limit, f"{config.source}/{config.site}")


def check_meant(config: DataConfig) -> None:
    """Raise DataError for a setting that is meant for another connector, and would be ignored."""
    reads = connector(config.source).reads
    for name in PARTICULAR:
        if getattr(config, name) is not None and reads is not None and name not in reads:
            meant = ", ".join(f"'{other}'" for other in _readers(name)) or "another connector"
            raise DataError(f"data.{name} is for data.source {meant}; '{config.source}' has no use for it")


def _readers(setting: str) -> list[str]:
    """The connectors installed here that say they read `setting`; one that cannot be loaded says nothing."""
    readers = []
    for name in sources():
        with suppress(ConfigError):
            readers += [name] if setting in (connector(name).reads or ()) else []
    return readers


def opt_out_stamp(config: DataConfig) -> object:
    """Changes when the list of persons who are left out does."""
    return None if config.opt_out is None else (stamp(Path(config.opt_out).expanduser()),)


def source_stamp(config: DataConfig) -> object:
    """Changes when the list of persons who are left out does, or the table, or a file of the folder, of the records."""
    if config.path is None:
        return opt_out_stamp(config)
    path = Path(config.path).expanduser()
    files = tuple(stamp(file) for file in sorted(path.iterdir())) if path.is_dir() else ()
    return opt_out_stamp(config), stamp(path), files


def check_private_data(task: Task, config: DataConfig) -> None:
    """Raise PrivacyError unless the settings say who is a person; no record is read for it, of a table the header.

    Whatever this refuses, `Dataset.not_private` refuses too.
    """
    if config.limit is not None:
        raise PrivacyError(LIMITED)
    if reason := connector(config.source).obstacle(task, config):
        raise PrivacyError(reason)


def natural_sites(config: DataConfig) -> tuple[str, ...]:
    """The real institutions that a simulation takes the source's records from; () if their split is simulated."""
    return connector(config.source).sites(config)


def single(config: DataConfig) -> bool:
    """Whether every site would be given the same records: a simulation must cut them up, or be given a folder."""
    return not natural_sites(config) and not connector(config.source).cuts


def sample(records: Dataset, limit: int, salt: str) -> Records:
    """At most `limit` training records and a quarter as many held-out ones, the same at every call."""
    from sovfed.clients.data.split import uniform

    sampled = [
        np.sort(rows[np.argsort(uniform(f"{salt}/limit", rows), kind="stable")[:most]])
        for rows, most in ((records.train, limit), (records.test, max(1, limit // 4)))
    ]
    rows = np.concatenate(sampled)
    train, test = np.split(np.arange(len(rows)), [len(sampled[0])])
    return Records(records.take(rows), records.persons[rows], train, test, records.several_records, LIMITED)


def table_of(schema: Schema, values: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Table:
    """The table of a schema with one array of inputs and one target, in the types that it stores."""
    (first, (dtype, shape)), (second, (kind, _)) = schema.stored().items()
    return {first: values.reshape(-1, *shape).astype(dtype, copy=False), second: targets.astype(kind, copy=False)}


def require_task(task: Task, source: str, *names: str) -> None:
    """Raise DataError unless `task` is one that connector `source` has records for."""
    if task.name not in names:
        expected = " or ".join(f"'{name}'" for name in names)
        raise DataError(f"data.source '{source}' holds records for task {expected}, not for '{task.name}'")


def check(records: Dataset, schema: Schema, where: str, hint: str = "") -> None:
    """Raise DataError unless `records` fit `schema`, and no person is both in the training and the held-out part.

    `hint` says how bounds are declared.

    Values that are all in memory are looked at here; those that are decoded later, by who decodes them.
    """
    count = len(records.persons)
    if isinstance(records, Records):
        _check_columns(records.columns, schema, count, where, hint)
    sides = [rows for rows in (records.train, records.test) if len(rows)]
    if not sides:
        raise DataError(f"{where}: no training and no held-out records")
    if not all(rows.min() >= 0 and rows.max() < count for rows in sides) or _several(count, *sides):
        raise DataError(f"{where}: training and held-out part overlap or point outside the {count} records")
    if not records.several_records and _fewer_persons(records.persons):
        raise DataError(f"{where}: a person has several records, though one for each was declared")
    if shared := _on_both_sides(records):
        raise DataError(f"{where}: {shared} persons are both in the training and the held-out part")


def _several(count: int, *numbers: Indices) -> bool:
    """Whether a number below `count` comes twice. A byte each, where counts or a sorted copy would take eight."""
    present = np.zeros(count, bool)
    for each in numbers:
        present[each] = True
    return int(present.sum()) < sum(map(len, numbers))


def _fewer_persons(persons: Indices) -> bool:
    """Whether a person has several records."""
    if persons.min() >= 0 and persons.max() < len(persons):
        return _several(len(persons), persons)
    return len(np.unique(persons)) < len(persons)


def _on_both_sides(records: Dataset) -> int:
    """Persons with records in the training and in the held-out part."""
    persons = records.persons
    if persons.min() >= 0 and persons.max() < len(persons):  # numbered one after the other, as most are
        present = np.zeros((2, len(persons)), bool)
        present[0, persons[records.train]] = present[1, persons[records.test]] = True
        return int(present.all(0).sum())
    return len(np.intersect1d(persons[records.train], persons[records.test]))


def _check_columns(table: Table, schema: Schema, count: int, where: str, hint: str) -> None:
    stored = schema.stored()
    if set(table) != set(stored):
        raise DataError(f"{where}: columns {sorted(table)[:8]}, expected {sorted(stored)[:8]}")
    for name, (dtype, shape) in stored.items():
        if table[name].shape != (count, *shape) or table[name].dtype != dtype:
            actual = f"{table[name].dtype} of shape {table[name].shape}"
            raise DataError(f"{where}: column '{name}': {actual}, expected {dtype} of shape {(count, *shape)}")
    if not _all_inside(table, schema):
        for position, column in enumerate(schema.numbers):
            _check_values(table[NUMBERS][:, position], column, where, hint)
    for position, column in enumerate(schema.codes):
        _check_values(table[CODES][:, position], column, where)
    for column in (*schema.shaped, *schema.targets):
        _check_values(table[column.name], column, where, hint)


def _all_inside(table: Table, schema: Schema) -> bool:
    """Whether all scalar numbers are there and within bounds: row by row as they lie in memory."""
    if NUMBERS not in table:
        return True
    low, high = np.array([column.bounds for column in schema.numbers], np.float32).T
    parts = (table[NUMBERS][start : start + CHECKED] for start in range(0, len(table[NUMBERS]), CHECKED))
    return all(bool(((block >= low) & (block <= high)).all()) for block in parts)


def _check_values(values: npt.NDArray[Any], column: Column, where: str, hint: str = "") -> None:
    """Raise DataError unless all are within the column's bounds, or missing where they may be."""
    low, high = column.bounds
    outside = 0
    for start in range(0, len(values), CHECKED):
        block = values[start : start + CHECKED]
        fits = (block >= low) & (block <= high)
        if column.missing != REFUSE:
            fits |= (block == MISSING_CODE) if block.dtype.kind in "iu" else np.isnan(block)
        outside += int((~fits).sum())
    if outside:
        fault = "are no known class" if column.kind == "category" else f"missing or outside [{low:g}, {high:g}]{hint}"
        raise DataError(f"{where}: column '{column.name}': {outside} of {values.size} values {fault}")
