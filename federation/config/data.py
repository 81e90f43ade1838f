"""Where an institution's records are, and which of them a task is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from sovfed.federation.content import ContentConfig
from sovfed.federation.schema import bounded, choice, named
from sovfed.federation.text import AT, DIGEST, LEAST_DIGEST, NAME

EXCEL: Final = "excel"  # a date_format: days since 1899-12-30, as 46053 for 2026-01-31
BAD_ROWS: Final = ".bad-rows"  # how files that list them end
REST: Final = "data"  # stands for the tasks that none of an institution's studies names
LEAST_SPREAD: Final = 1e-3  # of a feature's declared range, as its standard deviation


@dataclass(frozen=True)
class DataConfig:
    """Where an institution's records come from; read by its trainer and by nothing else."""

    source: str = named("breast_cancer", doc="the data connector; `sovfed data sources` names those that are installed")
    path: str | None = bounded(None, 1, 4096, doc="the connector's file or folder; null where the data are embedded")
    site: str = bounded("0", 1, 64, doc="the institution whose records to read: '0', '1', … or a name such as 'va'")
    sites: int = bounded(4, 1, 1_000, doc="institutions that a simulated split is made for")
    person: str | None = bounded(
        None,
        1,
        64,
        doc="csv: the column that names a person, or 'row': each row is another person; null: the task's, "
        "else 'person' if it is there. Private runs need to know",
    )
    opt_out: str | None = bounded(
        None, 1, 4096, doc="tables, images: a file with a person a line, who are left out; best beside the records"
    )
    site_column: str | None = bounded(
        None, 1, 64, doc="tables: the column whose values are the institutions; only the rows of `site` are read"
    )
    table: str | None = bounded(None, 1, 4096, doc="images: the table beside them; null: the folder's only one")
    mapping: str | None = bounded(
        None, 1, 4096, doc="a YAML file: own names of a table's columns, or how FHIR or OMOP become columns"
    )
    url_file: str | None = bounded(None, 1, 4096, doc="sql: a file of mode 0600 that holds the database's URL")
    query: str | None = bounded(None, 1, 65_536, lines=True, doc="sql: the SELECT whose rows are the records")
    query_file: str | None = bounded(None, 1, 4096, doc="sql: a file with that SELECT, in the place of `query`")
    encoding: str | None = bounded(None, 1, 32, doc="csv: as in cp1252; null: by its mark, else UTF-8, else Windows'")
    separator: str = choice("auto", ("auto", ",", ";", "tab", "|"), doc="csv: auto: by the header's names")
    decimal: str = choice("auto", ("auto", ".", ","), doc="csv: mark of decimals; auto: as the first rows have it")
    date_format: str | None = bounded(
        None, 1, 32, doc="tables: as in %d.%m.%Y, or excel: its numbers of days; null: year-month-day"
    )
    missing_words: tuple[str, ...] = bounded(
        (), words=True, doc="tables: further words for a missing value, as in [k.A., -99]"
    )
    detection_limit: str = choice(
        "refuse", ("refuse", "limit"), doc="tables: of a value such as <0.2 refuse the row, or take the limit"
    )
    bad_rows: str = choice("refuse", ("refuse", "quarantine"), doc="tables: refuse a table with any, or leave them out")
    max_bad_share: float = bounded(0.05, 0.0, 1.0, doc="tables: share of bad rows above which a table is refused")
    bad_rows_file: str | None = bounded(
        None, 1, 4096, doc="where bad rows are listed; null: beside the table, by the trainer: in run/trainer"
    )
    limit: int | None = bounded(
        None,
        1,
        10**9,
        unit="records",
        doc="most to train on, a sample; of those held out a quarter; null = all, as private runs demand",
    )

    def __post_init__(self) -> None:
        if self.date_format is not None and self.date_format != EXCEL and "%" not in self.date_format:
            raise ValueError(
                f"date_format is {self.date_format!a}, expected one as in %d.%m.%Y (%Y: 2026, %y: 26), or {EXCEL}"
            )


class Versioned(Protocol):
    """What a task is known by."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True)
class StudyConfig:
    """One of an institution's studies: the records that a task is trained on here."""

    task: str = bounded("", 1, 256, doc="the task, by name or, one version of it, by NAME@DIGEST")
    data: DataConfig = DataConfig()
    population: str = bounded(
        "", 0, 64, doc="whose records these are, as in policy.yaml; empty: the home's own population"
    )
    content: ContentConfig = ContentConfig()

    def __post_init__(self) -> None:
        name, at, digest = self.task.partition(AT)
        if not NAME.fullmatch(name) or (at and not DIGEST.fullmatch(digest)):
            raise ValueError(
                f"task is {self.task[:80]!a}, expected NAME or NAME@DIGEST of {LEAST_DIGEST} digits or more"
            )
