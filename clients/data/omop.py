"""OMOP CDM tables (files or a database) as one row a person, by the mapping of `data.mapping`.

    columns:
      age: {table: person, path: year_of_birth, age_at: 2026-01-01}
      sex: {table: person, path: gender_concept_id, values: {8507: male, 8532: female}}
      glucose: {table: measurement, codes: 3004501, take: last, unit: "8840"}
      diabetes: {table: condition_occurrence, codes: [201826, 443238], take: any}

`data.path` is the folder of person, measurement and condition_occurrence as .csv or .parquet; with `data.url_file` they
are read from that database instead. Codes and units are concept numbers. Source: OHDSI, OMOP CDM 5.4.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from sovfed.clients.data.parquet import Parquet
from sovfed.clients.data.sql import Sql
from sovfed.clients.data.tables.cells import as_text
from sovfed.clients.data.tables.connect import connector
from sovfed.clients.data.tables.delimited import Delimited
from sovfed.clients.data.tables.facts import Facts, Gathered, Rule, rules_of
from sovfed.clients.data.tables.header import Index
from sovfed.clients.data.tables.mapping import read_mapping
from sovfed.clients.data.tables.source import whole
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sovfed.clients.data.tables.report import Report
    from sovfed.clients.data.tables.source import Source
    from sovfed.federation.config import DataConfig

# Of each table: the concept, the date, the value that stands for the entry, and its unit.
COLUMNS: Final = {
    "person": ("", "", "", ""),
    "measurement": ("measurement_concept_id", "measurement_date", "value_as_number", "unit_concept_id"),
    "condition_occurrence": ("condition_concept_id", "condition_start_date", "condition_concept_id", ""),
}
PERSON_ID: Final = "person_id"


class Omop(Facts):
    """The persons of a CDM."""

    def __init__(self, config: DataConfig, rules: Mapping[str, Rule]) -> None:
        super().__init__(str(config.url_file or config.path), rules)
        self._config = config
        self._open("person", [PERSON_ID])

    def gather(self, report: Report) -> tuple[list[str], dict[str, Gathered]]:
        gathered = {name: Gathered(rule) for name, rule in self.rules.items()}
        persons: dict[str, None] = {}
        for table in COLUMNS:
            columns = {name: column for name, column in gathered.items() if column.rule.table == table}
            if table == "person":
                for (person,) in self._rows(table, [PERSON_ID], (), report):
                    persons[person] = None
            for name, column in columns.items():
                self._take(name, column, report)
        return [person for person in persons if person], gathered

    def _take(self, name: str, column: Gathered, report: Report) -> None:
        rule = column.rule
        concept, date, value, unit = COLUMNS[rule.table]
        names = [
            PERSON_ID,
            rule.path or value or PERSON_ID,
            *([date] if date else []),
            *([unit] if unit and rule.unit else []),
        ]
        count = 0
        for row in self._rows(rule.table, names, rule.codes if concept else (), report):
            if unit and rule.unit and row[3] != rule.unit:
                count += 1
                continue
            column.add(row[0], row[2] if date else "", row[1] or None)
        if count:
            raise DataError(
                f"{self.where}: {rule.table}: column '{name}': {count} values are in another unit than {rule.unit}"
            )

    def _rows(self, table: str, names: list[str], codes: tuple[str, ...], report: Report) -> Iterator[tuple[str, ...]]:
        """The rows of a table with one of `codes`, or all: of the columns `names` the text."""
        concept = COLUMNS[table][0]
        needed = [*names, concept] if codes else names
        source = self._open(table, needed)
        index = Index(source.header, source.where)
        places = [index.demand(name, "OMOP") for name in needed]
        distinct = sorted(set(places))
        for batch in source.batches(distinct, [], report):
            cells = [pc.fill_null(as_text(whole(batch.cells[distinct.index(position)])), "") for position in places]
            if codes:
                mask = pc.is_in(pc.utf8_trim_whitespace(cells[-1]), pa.array(codes))
                cells = [column.filter(mask) for column in cells[:-1]]
            texts = [[text.strip() for text in column.to_pylist()] for column in cells]
            yield from zip(*texts, strict=True)

    def _open(self, table: str, names: list[str]) -> Source:
        if self._config.url_file is not None:
            query = f"SELECT {', '.join(dict.fromkeys(names))} FROM {table}"  # noqa: S608 - of names that are checked
            return Sql(dataclasses.replace(self._config, query=query, query_file=None))
        folder = Path(self._config.path or "").expanduser()
        folder = folder / self._config.site if (folder / self._config.site).is_dir() else folder
        for path in (folder / f"{table}.parquet", folder / f"{table}.csv"):
            if path.is_file():
                return Parquet(path) if path.suffix == ".parquet" else Delimited(path, self._config, names)
        raise DataError(f"{folder}: neither {table}.parquet nor {table}.csv, which data.mapping needs")


def open_omop(config: DataConfig, names: Iterable[str]) -> Omop:
    """The configured CDM. Raises DataError."""
    if not config.path and not config.url_file:
        raise DataError("data.source 'omop' needs data.path, the folder of the tables, or data.url_file, the database")
    rules = rules_of(read_mapping(config), config.mapping or "", COLUMNS)
    for name, rule in rules.items():
        if rule.path and not rule.path.replace("_", "").isalnum():
            raise DataError(f"{config.mapping}: columns.{name}.path is no column's name")
    return Omop(config, rules)


CONNECTOR: Final = connector(open_omop, (), reads=("url_file",))
