"""CSV files of the tests, and how they are loaded."""

from __future__ import annotations

from typing import Any

from tests.clients.data.cases import NAMELESS, rows

from sovfed.clients.data import Records, load_records
from sovfed.federation.config import DataConfig

EXPECTED = [[50.5, 1.25, 0.0], [61.0, 0.5, 1.0], [47.0, 2.0, 0.0]]


PLAIN = "age,dose,ill\n50.5,1.25,0\n61,0.5,1\n47,2,0\n"


def load(config: DataConfig, task: Any = NAMELESS) -> Records:
    records = load_records(task, config)
    assert isinstance(records, Records)
    return records


LINES = [f"{30 + row % 7},{row % 3},{row % 2}" for row in range(80)]  # 42 different ones: some thrice


def sides(records: Records) -> tuple[list[list[float]], list[list[float]]]:
    values = rows(records)
    return sorted(values[row] for row in records.train), sorted(values[row] for row in records.test)
