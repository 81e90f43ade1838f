"""A small task and small tables, for the tests of what reads them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sovfed.clients.data import Records
from sovfed.federation.config import DataConfig
from sovfed.federation.tasks.columns import Column, Schema, number, target
from sovfed.federation.tasks.registry import get_task

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.tasks import Task

AGE = number("age", 0, 120)
DOSE = number("dose", 0, 5)
ILL = target("ill", "no", "yes")


def task_of(*columns: Column, **rest: Any) -> Task:
    """A task with these columns; what else it has is another one's."""
    return dataclasses.replace(get_task("breast_cancer"), name="small", schema=Schema(columns, **rest))


SMALL = task_of(AGE, DOSE, ILL, person="patient")
NAMELESS = task_of(AGE, DOSE, ILL)


def written(folder: Path, content: str | bytes, name: str = "records.csv", **settings: Any) -> DataConfig:
    """The settings of a file with this content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return dataclasses.replace(DataConfig(source="csv", path=str(path)), **settings)


def rows(records: Any) -> list[list[float]]:
    """The stored numbers, then the target."""
    assert isinstance(records, Records)
    *_, last = records.columns
    return [
        [*map(float, values), float(label)]
        for values, label in zip(records.columns[".numbers"], records.columns[last], strict=True)
    ]
