"""Parquet: the same records as from CSV, whatever types its columns have, in little memory."""

from __future__ import annotations

import datetime
import decimal
import resource
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.clients.data.cases import AGE, ILL, NAMELESS, SMALL, rows, task_of, written

from sovfed.clients.data import load_records, natural_sites, single
from sovfed.clients.data.parquet import MAX_BATCH, Parquet
from sovfed.clients.data.tables import read_table
from sovfed.clients.data.tables.report import Report
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import CODES, NUMBERS, Column, Schema, number

if TYPE_CHECKING:
    from pathlib import Path

DAY = datetime.date(2020, 1, 31)


def _parquet(folder: Path, columns: dict[str, Any], name: str = "records.parquet", **settings: Any) -> DataConfig:
    pq.write_table(pa.table(columns), folder / name, row_group_size=2)
    return DataConfig(source="parquet", path=str(folder / name), **settings)


def test_numbers_of_every_type_are_read(tmp_path: Path) -> None:
    config = _parquet(
        tmp_path,
        {
            "age": pa.array([50, 61, 47], pa.int16()),
            "dose": pa.array([decimal.Decimal("1.25"), decimal.Decimal("0.50"), decimal.Decimal("2.00")]),
            "ill": pa.array([False, True, False]),
            "unused": pa.array([{"a": 1}] * 3),
        },
    )
    assert rows(load_records(NAMELESS, config)) == [[50, 1.25, 0], [61, 0.5, 1], [47, 2, 0]]


def test_text_dates_words_and_lists_are_read(tmp_path: Path) -> None:
    task = task_of(
        AGE, Column("seen", "date", low=0.0, high=40_000.0), Column("stage", "category", categories=("I", "II")),
        number("curve", 0, 9, shape=(2,)), ILL,
    )  # fmt: skip
    config = _parquet(
        tmp_path,
        {
            "age": ["50", " 61 "], "seen": [DAY, DAY], "stage": pa.array(["II", "I"]).dictionary_encode(),
            "curve": [[1.0, 2.0], [3.0, 4.0]], "ill": pa.array([1, 0], pa.int64()),
        },
    )  # fmt: skip
    records = load_records(task, config).take(np.array([0, 1]))
    assert records[NUMBERS].tolist() == [[50, 18_292], [61, 18_292]]
    assert records[CODES].tolist() == [[1], [0]]
    assert records["curve"].tolist() == [[1, 2], [3, 4]]
    assert records["ill"].tolist() == [1, 0]


def test_times_are_days(tmp_path: Path) -> None:
    task = task_of(Column("seen", "date", low=0.0, high=40_000.0), ILL)
    seen = pa.array([datetime.datetime(2020, 1, 31, 23, 59)], pa.timestamp("us"))  # noqa: DTZ001 - as databases have it
    assert rows(load_records(task, _parquet(tmp_path, {"seen": seen, "ill": [0]}))) == [[18_292, 0]]


@pytest.mark.parametrize("names", [[7, 8, 7], [7.0, 8.0, 7.0], ["7", " 8", "7 "]])
def test_persons_of_any_type_are_told_apart(tmp_path: Path, names: list[Any]) -> None:
    config = _parquet(tmp_path, {"age": [1, 2, 3], "dose": [1.0, 1.0, 1.0], "ill": [0, 1, 1], "patient": names})
    assert load_records(SMALL, config).persons.tolist() == [0, 1, 0]


def test_the_split_is_that_of_the_csv_file(tmp_path: Path) -> None:
    names = [f"p{row % 30}" for row in range(90)]
    ages = [row % 50 for row in range(90)]
    one = load_records(SMALL, _parquet(tmp_path, {"age": ages, "dose": [1.0] * 90, "ill": [0] * 90, "patient": names}))
    lines = [f"{age},1,0,{name}" for age, name in zip(ages, names, strict=True)]
    two = load_records(SMALL, written(tmp_path, "\n".join(["age,dose,ill,patient", *lines])))
    assert np.array_equal(one.train, two.train)
    assert np.array_equal(one.persons, two.persons)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"age": [1.0, None, float("nan")]}, r"column 'age': 2 values are missing \(rows 2, 3\)"),
        ({"age": [1, 2, 900]}, r"column 'age': 1 value is outside its bounds \(row 3\)"),
        ({"age": [b"a", b"b", b"c"]}, "column 'age': 3 values are no numbers"),
        ({"ill": [0, 1, 5]}, "column 'ill': 1 value is a code"),
        ({"ill": [0.0, 1.0, 0.5]}, "column 'ill': 1 value is no known word"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    plain = {"age": [1, 2, 3], "dose": [1.0, 1.0, 1.0], "ill": [0, 1, 1]}
    with pytest.raises(DataError, match=said):
        load_records(NAMELESS, _parquet(tmp_path, plain | columns))


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + b"\x00" * 100 + b"PAR1", b"age,dose\n"])
def test_a_broken_file_is_told(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="no Parquet file"):
        load_records(NAMELESS, written(tmp_path, content, "x.parquet", source="parquet"))


def test_sites_are_files_or_values(tmp_path: Path) -> None:
    for name, age in (("a", 40), ("b", 60)):
        _parquet(tmp_path, {"age": [age], "dose": [1], "ill": [0]}, f"{name}.parquet")
    config = DataConfig(source="parquet", path=str(tmp_path), site="b")
    assert natural_sites(config) == ("a", "b")
    assert rows(load_records(NAMELESS, config)) == [[60, 1, 0]]
    assert single(DataConfig(source="parquet", path=str(tmp_path / "a.parquet")))


def test_little_more_memory_is_taken_than_the_columns_need(tmp_path: Path) -> None:
    """At most 1.3 times their bytes and a batch, as the operating system counts it: 40 MB for 200,000 × 50."""
    columns = {f"c{place}": np.linspace(0, 1, 200_000, dtype=np.float32) for place in range(50)}
    pq.write_table(pa.table(columns), tmp_path / "big.parquet", row_group_size=20_000)
    del columns
    schema = Schema((*(number(f"c{place}", 0, 1) for place in range(49)), number("c49", 0, 1, role="target")))
    source, config = Parquet(tmp_path / "big.parquet"), DataConfig()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = read_table(schema, source, config)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    own = sum(part.nbytes for part in read.table.values())
    assert own == 200_000 * 50 * 4
    assert grown < 1.3 * own + 16e6


def test_a_text_that_many_rows_share_takes_no_memory_for_each(tmp_path: Path) -> None:
    """Seen: a file of 42 kB asked for more than 3 GB."""
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 900_000]))
    columns = {"text": once, "ill": pa.array(["yes", None] * 10_000)}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", store_schema=False)
    assert (tmp_path / "x.parquet").stat().st_size < 60_000
    batches = Parquet(tmp_path / "x.parquet").batches([0, 1], [], Report("x"))
    lines = []
    for batch in islice(batches, 3):
        assert batch.cells[0].nbytes <= MAX_BATCH + 2 * 900_000
        assert batch.cells[1].to_pylist() == ["yes" if line % 2 else None for line in batch.lines.tolist()]
        lines += batch.lines.tolist()
    assert lines == list(range(1, len(lines) + 1))


def test_a_number_that_stands_for_a_missing_value_is_none(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    pq.write_table(pa.table({"excess": pa.array([-99.5, 3.0], pa.float32()), "ill": [0, 1]}), path)
    task = task_of(number("excess", -100, 100, missing="mean"), ILL)
    config = DataConfig(source="parquet", path=str(path), missing_words=("-99.5",), person="row")
    records = load_records(task, config)
    assert np.isnan(records.take(np.array([0]))[NUMBERS]).all()
    assert records.take(np.array([1]))[NUMBERS] == 3
