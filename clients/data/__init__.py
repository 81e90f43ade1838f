"""Data connectors: each turns an institution's own files into checked `Records`. One file a connector.

A DataError says which file, line and column is wrong, never a value; only its code crosses the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import DataError, PrivacyError
from sovfed.federation.schema import nearest

if TYPE_CHECKING:
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Schema, Task

SOURCES: Final = ("breast_cancer", "csv", "digits", "none", "pneumoniamnist", "statutes", "synthetic", "uci_heart")
TASK_OF_SOURCE: Final = {  # of those that hold one task's records; the others serve whichever fits
    "breast_cancer": "breast_cancer", "digits": "digits", "none": "echo", "pneumoniamnist": "pneumonia",
    "statutes": "statutes", "uci_heart": "heart",
}  # fmt: skip
LIMITED: Final = (
    "data.limit takes a sample in which one person's coming is another's going; a private run needs all records "
    "(data.limit=null)"
)
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, repr=False, eq=False)
class Records:
    """An institution's records of one task; its text form shows counts only.

    `features` [n, f], `labels` [n] from 0, `persons` [n] (equal number: same person), `train` and `test` disjoint rows.
    `several_records` declares whether a person may have more than one; it is never counted, since one person's coming
    would change it for all. `not_private` says why no private run may use them, "" if it may: then adding or removing
    a person adds or removes that person's rows and moves no other person's from one part to the other.
    """

    features: npt.NDArray[np.float32]
    labels: Indices
    persons: Indices
    train: Indices
    test: Indices
    several_records: bool = True
    not_private: str = ""

    def __repr__(self) -> str:
        persons = len(np.unique(self.persons))
        return f"<{len(self.labels)} records of {persons} persons: {len(self.train)} train, {len(self.test)} held out>"


def load_records(task: Task, config: DataConfig) -> Records:
    """The institution's records for `task`, checked against its schema. Raises DataError saying what is wrong."""
    match config.source:
        case "breast_cancer":
            from sovfed.clients.data.breast_cancer import load
        case "csv":
            from sovfed.clients.data.csv import load
        case "digits":
            from sovfed.clients.data.digits import load
        case "pneumoniamnist":
            from sovfed.clients.data.pneumoniamnist import load
        case "statutes":
            from sovfed.clients.data.statutes import load
        case "synthetic":
            from sovfed.clients.data.synthetic import load
        case "uci_heart":
            from sovfed.clients.data.uci_heart import load
        case "none":
            raise DataError(f"data.source is 'none': this institution holds no records for task '{task.name}'")
        case _:
            raise DataError(f"unknown data.source '{config.source[:64]}'{nearest(config.source, SOURCES)}")
    records = load(task, config)
    check(records, task.schema, f"{config.source}, site {config.site}")
    return records if config.limit is None else sample(records, config.limit, f"{config.source}/{config.site}")


def check_private_data(task: Task, config: DataConfig) -> None:
    """Raise PrivacyError unless the settings say who is a person; no record is read for it, of a CSV file the header.

    Whatever this refuses, `Records.not_private` refuses too.
    """
    if config.limit is not None:
        raise PrivacyError(LIMITED)
    if config.source == "csv":
        from sovfed.clients.data.csv import UNDECLARED, declares_persons

        if not declares_persons(task, config):
            raise PrivacyError(UNDECLARED)


def natural_sites(config: DataConfig) -> tuple[str, ...]:
    """The real institutions that a simulation takes the source's records from; () if their split is simulated."""
    match config.source:
        case "uci_heart":
            from sovfed.clients.data.uci_heart import SITES

            return SITES
        case "statutes":
            from sovfed.clients.data.statutes import sites_in

            return sites_in(config.path or "")
        case _:
            return ()


def sample(records: Records, limit: int, salt: str) -> Records:
    """At most `limit` training records and a quarter as many held-out ones, the same at every call."""
    from sovfed.clients.data.split import uniform

    kept = [
        np.sort(rows[np.argsort(uniform(f"{salt}/limit", rows), kind="stable")[:most]])
        for rows, most in ((records.train, limit), (records.test, max(1, limit // 4)))
    ]
    rows = np.concatenate(kept)
    train, test = np.split(np.arange(len(rows)), [len(kept[0])])
    return Records(
        records.features[rows], records.labels[rows], records.persons[rows], train, test, records.several_records,
        LIMITED,
    )  # fmt: skip


def require_task(task: Task, source: str, *names: str) -> None:
    """Raise DataError unless `task` is one that connector `source` has records for."""
    if task.name not in names:
        known = " or ".join(f"'{name}'" for name in names)
        raise DataError(f"data.source '{source}' holds records for task {known}, not for '{task.name}'")


def check(records: Records, schema: Schema, where: str) -> None:
    """Raise DataError unless `records` fit `schema`, and no person is both in the training and the held-out part."""
    count, width = len(records.labels), len(schema.features)
    if records.features.shape != (count, width) or records.persons.shape != (count,):
        raise DataError(f"{where}: {records.features.shape} features for {count} labels, expected {width} columns")
    low, high = (
        np.array([getattr(feature, end) for feature in schema.features], np.float32) for end in ("low", "high")
    )
    outside = _outside(records.features, low, high)
    for column in np.flatnonzero(outside)[:1]:
        feature, bounds = schema.features[column], f"[{low[column]:g}, {high[column]:g}]"
        raise DataError(
            f"{where}: column '{feature.name}': {outside[column]} of {count} values missing or outside {bounds}"
        )
    bad = int(_outside(records.labels, 0, len(schema.classes) - 1))
    if bad:
        raise DataError(f"{where}: label '{schema.label}': {bad} of {count} values are no known class")
    parts = np.concatenate([records.train, records.test])
    if not len(parts):
        raise DataError(f"{where}: no training and no held-out records")
    if len(np.unique(parts)) != len(parts) or parts.min() < 0 or parts.max() >= count:
        raise DataError(f"{where}: training and held-out part overlap or point outside the {count} records")
    if not records.several_records and len(np.unique(records.persons)) < count:
        raise DataError(f"{where}: a person has several records, though one for each was declared")
    shared = np.intersect1d(records.persons[records.train], records.persons[records.test])
    if len(shared):
        raise DataError(f"{where}: {len(shared)} persons are both in the training and the held-out part")


def _outside(values: npt.NDArray[Any], low: Any, high: Any) -> Any:
    """How many values of each column are missing or not in [low, high]."""
    return (~((values >= low) & (values <= high))).sum(0)
