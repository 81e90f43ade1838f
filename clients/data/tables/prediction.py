"""Rows to predict for: the inputs of a schema from a file, whether or not it says what is to be predicted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.data.csv import SUFFIXES as CSV
from sovfed.clients.data.csv import open_csv
from sovfed.clients.data.jsonl import SUFFIXES as JSONL
from sovfed.clients.data.jsonl import open_jsonl
from sovfed.clients.data.parquet import SUFFIXES as PARQUET
from sovfed.clients.data.parquet import open_parquet
from sovfed.clients.data.tables.connect import read_rows
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from sovfed.clients.data.tables import TableRead
    from sovfed.federation.tasks.columns import Schema

OPENERS: Final = (("csv", CSV, open_csv), ("parquet", PARQUET, open_parquet), ("jsonl", JSONL, open_jsonl))


def source_of(path: str | Path) -> str:
    """The connector that reads a file of this name, or a folder of such files. Raises DataError."""
    location = Path(path)
    names = [child.name for child in sorted(location.iterdir())] if location.is_dir() else [location.name]
    if location.is_dir() and any(name.split(".")[0] == "Patient" for name in names):
        return "fhir"
    if location.is_dir() and any(Path(name).stem == "condition_occurrence" for name in names):
        return "omop"
    for source, suffixes, _ in OPENERS:
        if any(name.lower().endswith(suffixes) and not name.startswith(".") for name in names):
            return source
    known_suffixes = ", ".join(suffix for _, suffixes, _ in OPENERS for suffix in suffixes)
    if not location.exists():
        raise DataError(f"{path}: no such file or folder; check data.path")
    what = "no file in it ends in one of" if location.is_dir() else "what it is does not show from its name, as from"
    raise DataError(f"{path}: {what} {known_suffixes}; name the source with data.source")


def place_of(path: Path, schema: Schema | None = None) -> dict[str, str]:
    """The settings of the group data for what lies at `path`, by names alone: no record is looked at.

    A table, or a folder, of a `schema` with an image is that of images, and of one with tokens a store of them, or a
    folder of such stores. Raises DataError.
    """
    if schema is not None and any(column.kind == "tokens" for column in schema.inputs):
        return {"source": "tokens", "path": str(path)}
    if schema is not None and any(column.kind == "image" for column in schema.inputs):
        beside = {} if path.is_dir() else {"table": path.name}
        return {"source": "images", "path": str(path if path.is_dir() else path.parent), **beside}
    return {"source": source_of(path), "path": str(path)}


def read_for_prediction(
    schema: Schema, path: str | Path, config: DataConfig | None = None, *, keep: bool = False
) -> TableRead:
    """The inputs of the rows in a CSV, Parquet or JSON lines file, without its targets. Raises DataError.

    `lines` tells each row's line in the file, since rows at fault may be left out (data.bad_rows=quarantine). With
    `keep` they stay, and the report names their lines.
    """
    source = source_of(path)
    config = dataclasses.replace(config or DataConfig(), source=source, path=str(path), site_column=None)
    opener = next(open_ for name, _, open_ in OPENERS if name == source)
    return read_rows(schema, config, opener, targets=False, keep=keep)
