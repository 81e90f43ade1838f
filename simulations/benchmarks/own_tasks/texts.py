"""`python -m … FOLDER ROWS TURNS`: CPU seconds of our CSV connector's load and of `pandas.read_csv`, interleaved.

Ours also checks every cell against the schema, keeps float32, and chooses who is held out. `pandas` is asked for the
same columns and nothing else: it leaves words and days as text. `typed_pandas` is told their types, as whoever trains
on them does; `arrow` is pyarrow's reader, which ours is made of, told numbers and days; `checked_pandas` makes of them
what a task needs, each cell within its bounds. `numbers` is a table of numbers alone, which is pandas' best case;
`mixed` has categories, yes/no, dates and a free text that nobody uses beside its numbers, as hospitals export.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from sovfed.clients.data.csv import CONNECTOR
from sovfed.federation.config import DataConfig
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Column, Schema, number

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS: Final = 30
WORDS: Final = ("none", "mild", "moderate", "severe")
ILL: Final = Column("ill", "boolean", role="target")


def schema_of(kind: str) -> Schema:
    """The columns that are used."""
    if kind == "numbers":
        return Schema(columns=(*(number(f"value_{index}", 0.0, 100.0) for index in range(NUMBERS)), ILL))
    return Schema(
        columns=(
            *(number(f"value_{index}", 0.0, 100.0) for index in range(16)),
            *(Column(f"grade_{index}", "category", categories=WORDS) for index in range(6)),
            *(Column(f"history_{index}", "boolean") for index in range(6)),
            *(Column(f"seen_{index}", "date", low=0.0, high=30_000.0) for index in range(2)),
            ILL,
        )
    )


def write(path: Path, schema: Schema, rows: int) -> Path:
    """A table of `rows` rows, with two columns that nobody uses."""
    generator = np.random.default_rng(0)
    days = pd.date_range("2000-01-01", periods=5_000).strftime("%Y-%m-%d").to_numpy()
    values: dict[str, Any] = {"note": np.array(["seen in the ward, no complaints"] * rows), "code": np.arange(rows)}
    for column in schema.columns:
        match column.kind:
            case "number":
                values[column.name] = np.round(generator.random(rows) * 100, 3)
            case "category":
                values[column.name] = np.array(WORDS)[generator.integers(0, len(WORDS), rows)]
            case "date":
                values[column.name] = days[generator.integers(0, len(days), rows)]
            case _:
                values[column.name] = np.array(["no", "yes"])[generator.integers(0, 2, rows)]
    pd.DataFrame(values).to_csv(path, index=False)
    return path


def measure(kind: str, folder: Path, rows: int, turns: int) -> dict[str, Any]:
    """Median and least CPU seconds of each, and the medians of the ratios of neighbouring turns."""
    schema = schema_of(kind)
    path = write(folder / f"{kind}.csv", schema, rows)
    task = Task(
        name=kind, title=kind, schema=schema, metrics=BinaryMetrics(), headline="auc", build=None, loss=None
    )  # fmt: skip
    config, names = DataConfig(source="csv", path=str(path), person="row"), [column.name for column in schema.columns]
    readers: dict[str, Callable[[], object]] = {
        "ours": lambda: CONNECTOR.load(task, config),
        "pandas": lambda: pd.read_csv(path, usecols=names),
        "typed_pandas": lambda: typed(path, schema),
        "arrow": lambda: parsed(path, schema),
        "checked_pandas": lambda: checked(pd.read_csv(path, usecols=names), schema),
    }
    seconds: dict[str, list[float]] = {system: [] for system in readers}
    for turn in range(turns + 1):
        for system, read in readers.items():
            start = time.process_time()
            read()
            if turn:
                seconds[system].append(time.process_time() - start)
    ratios = {
        f"over_{peer}": statistics.median(a / b for a, b in zip(seconds["ours"], seconds[peer], strict=True))
        for peer in readers
        if peer != "ours"
    }
    medians = {f"{system}_s": statistics.median(times) for system, times in seconds.items()}
    least = {f"{system}_least_s": min(times) for system, times in seconds.items()}
    return {"kind": kind, "rows": rows, "bytes": path.stat().st_size, **ratios, **medians, **least}


def typed(path: Path, schema: Schema) -> pd.DataFrame:
    """The columns as `pandas.read_csv` itself gives them where it is told what a model takes."""
    types: dict[str, Any] = {}
    for column in schema.columns:
        if column.kind == "category":
            types[column.name] = pd.CategoricalDtype(list(column.categories))
        elif column.kind != "date":
            types[column.name] = np.dtype(np.float32 if column.kind == "number" else bool)
    dates = [column.name for column in schema.columns if column.kind == "date"]
    names = [column.name for column in schema.columns]
    return pd.read_csv(
        path, usecols=names, dtype=types, parse_dates=dates, date_format="%Y-%m-%d", true_values=["yes"],
        false_values=["no"],
    )  # fmt: skip


def parsed(path: Path, schema: Schema) -> pa.Table:
    """The columns as pyarrow itself gives them where it is told numbers and days, the words as text."""
    kinds = {"number": pa.float64(), "date": pa.date32()}
    types = {column.name: kinds.get(column.kind, pa.string()) for column in schema.columns}
    return arrow_csv.read_csv(
        path, arrow_csv.ReadOptions(use_threads=False),
        convert_options=arrow_csv.ConvertOptions(column_types=types, include_columns=list(types)),
    )  # fmt: skip


def checked(frame: pd.DataFrame, schema: Schema) -> dict[str, npt.NDArray[np.float32]]:
    """The columns as numbers within their bounds, as one would write it with pandas. Raises ValueError."""
    table = {}
    for column in schema.columns:
        values = frame[column.name]
        match column.kind:
            case "category":
                values = values.str.strip().map({word: code for code, word in enumerate(column.categories)})
            case "boolean":
                values = values.str.strip().str.lower().map({"no": 0, "yes": 1})
            case "date":
                values = (pd.to_datetime(values, format="%Y-%m-%d") - pd.Timestamp(0)).dt.days
        if not values.between(*column.bounds).all():
            raise ValueError(column.name)
        table[column.name] = values.to_numpy(np.float32)
    return table


if __name__ == "__main__":
    folder, count, repeats = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    sys.stdout.write(json.dumps({kind: measure(kind, folder, count, repeats) for kind in ("numbers", "mixed")}))
