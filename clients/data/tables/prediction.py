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
    """The connector that reads a file of this name, or the folder. Raises DataError."""
    name, location = Path(path).name.lower(), Path(path)
    if location.is_dir():
        if any(child.name.split(".")[0] == "Patient" for child in location.iterdir()):
            return "fhir"
        return "omop" if any(child.stem == "condition_occurrence" for child in location.iterdir()) else "images"
    for source, suffixes, _ in OPENERS:
        if name.endswith(suffixes):
            return source
    known_suffixes = ", ".join(suffix for _, suffixes, _ in OPENERS for suffix in suffixes)
    raise DataError(
        f"{path}: what it is does not show from its name ({known_suffixes}); name the source with data.source"
    )


def read_for_prediction(schema: Schema, path: str | Path, config: DataConfig | None = None) -> TableRead:
    """The inputs of the rows in a CSV, Parquet or JSON lines file, without its targets. Raises DataError.

    `lines` tells each row's line in the file, since rows at fault may be left out (data.bad_rows=quarantine).
    """
    source = source_of(path)
    config = dataclasses.replace(config or DataConfig(), source=source, path=str(path), site_column=None)
    opener = next(open_ for name, _, open_ in OPENERS if name == source)
    return read_rows(schema, config, opener, targets=False)
