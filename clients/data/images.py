"""A folder of images with a table: each row names an image's file and whatever else is known of it.

`data.path` is the folder, `data.table` the table in it (CSV or Parquet; else the only one there). The table's column of
the schema's image holds the file's name within the folder. Images are decoded when they are asked for, a batch at a
time, and once before, each by itself: one that cannot be is a row at fault. An image must have the schema's size and
channels: nothing is resized or turned, since every institution must do the same.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Connector, Indices
from sovfed.clients.data.csv import SUFFIXES as CSV
from sovfed.clients.data.parquet import SUFFIXES as PARQUET
from sovfed.clients.data.parquet import Parquet
from sovfed.clients.data.pictures import decode, look
from sovfed.clients.data.tables import SKIP, TableRead, refuse, words
from sovfed.clients.data.tables.connect import connector, read_rows
from sovfed.clients.data.tables.delimited import Delimited
from sovfed.clients.data.tables.opt_out import remaining
from sovfed.clients.data.tables.records import settle, split
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sovfed.clients.data.tables.report import Mask
    from sovfed.clients.data.tables.source import Source
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Column, Schema, Table

    Files = dict[str, npt.NDArray[np.object_]]  # by column of images the names within the folder

THREADS: Final = 4
TOLD: Final = 5  # files that are named


@dataclass(frozen=True, repr=False, eq=False)
class Images:
    """A `Dataset` whose images lie in files until they are asked for."""

    columns: Table
    files: Files
    folder: Path
    schema: Schema
    persons: Indices
    train: Indices
    test: Indices
    several_records: bool
    not_private: str

    def __len__(self) -> int:
        return len(self.persons)

    def __repr__(self) -> str:
        return f"<{len(self)} records with images: {len(self.train)} train, {len(self.test)} held out>"

    def take(self, rows: Indices) -> Table:
        """The records at `rows`, with their images [n, channels, height, width]. Raises DataError."""
        table = {name: values[rows] for name, values in self.columns.items()}
        for column in self.schema.columns:
            if column.name in self.files:
                table[column.name] = self._decoded(column, self.files[column.name][rows])
        return {name: table[name] for name in self.schema.stored() if name in table}  # to predict for: no targets

    def _decoded(self, column: Column, names: npt.NDArray[np.object_]) -> npt.NDArray[Any]:
        result = np.empty((len(names), *column.shape), column.dtype)

        def fill(index: int) -> None:
            result[index] = decode(self.folder / names[index], column)

        if len(names) < THREADS:
            for index in range(len(names)):
                fill(index)
            return result
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(fill, range(len(names))))
        return result


def load(task: Task, config: DataConfig) -> Images:
    """The records of the configured folder. Raises DataError."""
    read, files = _sound(task.schema, config)
    settle(task.schema, config, read)
    digests = {name: _digests(values) for name, values in files.items()}
    persons, train, test = split(task.name, {**read.table, **digests}, read.persons)
    train, test = remaining(config, read.persons, train, test)
    return Images(
        read.table, files, _folder(config), task.schema, persons, train, test, read.persons is not None,
        read.not_private,
    )  # fmt: skip


def to_predict(schema: Schema, config: DataConfig, *, keep: bool = False) -> tuple[TableRead, Images]:
    """The rows of the configured table without what is learnt, and the same with their images. Raises DataError.

    With `keep` rows at fault stay, and the report names their lines: their images may be such as none can be read of.
    """
    if keep:
        read = _surveyed(schema, config, targets=False)
        files = {name: np.array(names, object) for name, names in read.files.items()}
    else:
        read, files = _sound(schema, config, targets=False)
    everybody = np.arange(read.report.used)
    images = Images(read.table, files, _folder(config), schema, everybody, everybody, everybody[:0], True, "")
    return read, images


def _sound(schema: Schema, config: DataConfig, *, targets: bool = True) -> tuple[TableRead, Files]:
    """The rows without fault, and of each column of images the files' names. Raises DataError."""
    read = _read(schema, config, keep=False, targets=targets)
    sound = _look_at(read, schema, _folder(config), keep=False)
    refuse(read.report, schema, config, advice="" if targets else SKIP)
    files = {name: np.array(names, object)[sound] for name, names in read.files.items()}
    table = {name: values[sound] for name, values in read.table.items()}
    persons = None if read.persons is None else read.persons.filter(_arrow(sound))
    lines = None if read.lines is None else read.lines[sound]
    return replace(read, table=table, persons=persons, lines=lines), files


def _survey(task: Task, config: DataConfig) -> TableRead:
    return _surveyed(task.schema, config, targets=True)


def _surveyed(schema: Schema, config: DataConfig, *, targets: bool) -> TableRead:
    """All rows, those at fault too, which the report names. Raises DataError."""
    read = _read(schema, config, keep=True, targets=targets)
    _look_at(read, schema, _folder(config), keep=True)
    return read


def _read(schema: Schema, config: DataConfig, *, keep: bool, targets: bool = True) -> TableRead:
    """The table's rows. Raises DataError."""
    if not any(column.kind == "image" for column in schema.inputs):
        raise DataError("data.source 'images' is for a task with a column of kind image; this one has none")
    return read_rows(schema, config, _open, files=True, keep=keep, targets=targets)


def _look_at(read: TableRead, schema: Schema, folder: Path, *, keep: bool) -> Mask:
    """Look at each image; those that do not fit are told to the report. Which rows are sound [n]."""
    sound = np.ones(read.report.used, bool)
    lines = read.lines if read.lines is not None else np.arange(1, read.report.used + 1)
    reasons: list[str] = []
    for column in schema.columns:
        if column.name not in read.files:
            continue
        with ThreadPoolExecutor(THREADS) as pool:
            findings = list(pool.map(lambda name, column=column: look(folder, name, column), read.files[column.name]))
        wrong = np.array([bool(reason) for reason in findings], bool)
        if wrong.any():
            read.report.fault(column.name, words.FILE, lines[wrong])
            reasons += [reason for reason in dict.fromkeys(findings) if reason]
        sound &= ~wrong
    read.report.bad += int((~sound).sum())
    if not keep:
        read.report.used = int(sound.sum())
    read.report.warnings += [f"images: {reason}" for reason in reasons[:TOLD]]
    return sound


def _digests(names: npt.NDArray[np.object_]) -> npt.NDArray[np.uint8]:
    """A digest of each name, shape [n, 32]: as long for every one, so that no name changes what another is."""
    content = b"".join(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names)
    return np.frombuffer(content, np.uint8).reshape(len(names), 32)


def _arrow(mask: Mask) -> Any:
    import pyarrow as pa

    return pa.array(mask)


def _folder(config: DataConfig) -> Path:
    if not config.path:
        raise DataError("data.source 'images' needs data.path: the folder of the images")
    folder = Path(config.path).expanduser()
    if (
        (folder / config.site).is_dir()
        and not config.site_column
        and not (config.table and (folder / config.table).is_file())
    ):
        folder = folder / config.site
    if folder.is_file():
        raise DataError(f"{folder}: no folder; name its folder: data.path={folder.parent} data.table={folder.name}")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check data.path")
    return folder


def _table(config: DataConfig) -> Path:
    """The table beside the images. Raises DataError."""
    folder = _folder(config)
    if config.table:
        return folder / config.table
    tables = sorted(path for path in folder.iterdir() if path.name.lower().endswith((*CSV, *PARQUET)))
    if len(tables) != 1:
        raise DataError(f"{folder}: {len(tables)} tables (.csv, .parquet), expected one; name it with data.table")
    return tables[0]


def _open(config: DataConfig, names: Iterable[str]) -> Source:
    path = _table(config)
    return Parquet(path) if path.name.lower().endswith(PARQUET) else Delimited(path, config, names)


def _sites(config: DataConfig) -> tuple[str, ...]:
    """The values of data.site_column, or the folders within data.path that have a table of their own."""
    if config.site_column:
        return _TABLE.sites(config)
    folder = Path(config.path or "").expanduser()
    if not config.path or not folder.is_dir():
        return ()
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return tuple(
        path.name for path in inner if any(file.name.lower().endswith((*CSV, *PARQUET)) for file in path.iterdir())
    )


_TABLE: Final = connector(_open, ())
CONNECTOR: Final = Connector(
    load, opts_out=True, sites=_sites, obstacle=_TABLE.obstacle, survey=_survey, reads=("table",)
)
