"""JSON lines, plain or packed: texts and numbers by key."""

from __future__ import annotations

import json
import lzma
from typing import TYPE_CHECKING

import pytest
from tests.clients.data.cases import AGE, ILL, SMALL, rows, task_of, written

from sovfed.clients.data import check_private_data, load_records, natural_sites
from sovfed.clients.data.jsonl import MAX_LINE, ROWS, Jsonl
from sovfed.clients.data.tables.report import Report
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import Column, number

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = [
    {"age": 50.5, "dose": 1.25, "ill": "no", "patient": 7, "more": {"a": [1]}},
    {"age": "61", "dose": 0.5, "ill": True, "patient": "8"},
    {"age": 47, "dose": 2, "ill": 0, "patient": "7"},
]
LINES = "\n".join(map(json.dumps, RECORDS)) + "\n\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_key_is_a_column(tmp_path: Path, packed: bool) -> None:
    content = lzma.compress(LINES.encode()) if packed else LINES
    config = written(tmp_path, content, f"x.jsonl{'.xz' if packed else ''}", source="jsonl")
    records = load_records(SMALL, config)
    assert rows(records) == [[50.5, 1.25, 0], [61, 0.5, 1], [47, 2, 0]]
    assert records.persons.tolist() == [0, 1, 0]


@pytest.mark.parametrize("place", [2, 150])
def test_whether_all_others_are_read_does_not_hang_on_the_one_record_that_has_a_key(tmp_path: Path, place: int) -> None:
    """As exports leave out what was not measured: who goes must take nobody else out of a private sum."""
    task = task_of(AGE, number("iron", 0, 500, missing="constant", fill=1.0), ILL, person="patient")
    records: list[dict[str, object]] = [{"age": row % 90, "ill": row % 2, "patient": f"p{row}"} for row in range(200)]
    records[place]["iron"] = 80
    read = []
    for kept in (records, records[:place] + records[place + 1 :]):
        config = written(tmp_path, "\n".join(map(json.dumps, kept)), "x.jsonl", source="jsonl")
        check_private_data(task, config)
        read.append(rows(load_records(task, config)))
    assert read[0].pop(place)[1] == 80
    assert str(read[0]) == str(read[1])


def test_text_is_stored_as_bytes(tmp_path: Path) -> None:
    task = task_of(Column("text", "text", shape=(5,)), ILL)
    config = written(
        tmp_path, '{"text": "hé\\u0000", "ill": 1}\n{"text": "\\ud800abcdefg", "ill": 0}\n', "x.jsonl", source="jsonl"
    )
    table = load_records(task, config).take(slice(None))  # type: ignore[arg-type]
    assert table["text"].tolist() == [[105, 0xC4, 0xAA, 1, 0], [64, 98, 99, 100, 101]]


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (LINES + "no json\n[1]\n", "x.jsonl", r"2 rows have more or fewer cells than the header \(lines 5, 6\)"),
        (LINES + '{"age": 300, "dose": 1, "ill": 0, "patient": 1}\n', "x.jsonl", r"outside its bounds \(line 5\)"),
        (LINES + '{"age": [1], "dose": 1, "ill": 0, "patient": 1}\n', "x.jsonl", "column 'age': 1 value is no number"),
        ('{"a": 1}\n', "x.jsonl", "lacks the column 'patient'|lacks 3 columns"),
        (LINES, "x.jsonl.xz", r"no \.xz file"),
        (lzma.compress(LINES.encode() * 100)[:-40], "x.jsonl.xz", r"no \.xz file, one that is cut off"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path: Path, content: str | bytes, name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load_records(SMALL, written(tmp_path, content, name, source="jsonl"))


def test_sites_are_files(tmp_path: Path) -> None:
    written(tmp_path, LINES, "a.jsonl")
    written(tmp_path, lzma.compress(LINES.encode()), "b.jsonl.xz")
    config = DataConfig(source="jsonl", path=str(tmp_path), site="b")
    assert natural_sites(config) == ("a", "b")
    assert len(load_records(task_of(AGE, ILL, person="patient"), config).persons) == 3


def test_streams_one_after_the_other_are_one_file(tmp_path: Path) -> None:
    first, second = LINES.encode()[:40], LINES.encode()[40:]
    content = lzma.compress(first) + bytes(8) + lzma.compress(second)
    config = written(tmp_path, content, "x.jsonl.xz", source="jsonl")
    assert load_records(SMALL, config).persons.tolist() == [0, 1, 0]


def test_long_lines_are_read_few_at_a_time(tmp_path: Path) -> None:
    """Before, 1,024 of them were held at once, each of up to 16 MB, which .xz packs in a few kB."""
    long = json.dumps({"text": "x" * (MAX_LINE // 4)}) + "\n"
    path = tmp_path / "x.jsonl.xz"
    path.write_bytes(lzma.compress((long * 6 + '{"text": "y"}\n' * (ROWS + 1)).encode(), preset=0))
    source = Jsonl(path, ())
    lines = [batch.lines.tolist() for batch in source.batches([0], [], Report("x"))]
    assert [len(rows) for rows in lines] == [4, ROWS, 3]
    assert [line for rows in lines for line in rows] == list(range(1, ROWS + 8))


def test_no_stream_may_ask_for_much_memory(tmp_path: Path) -> None:
    greedy = [{"id": lzma.FILTER_LZMA2, "preset": 1, "dict_size": 1 << 28}]
    content = lzma.compress(LINES.encode() * 50) + lzma.compress(LINES.encode(), filters=greedy)
    with pytest.raises(DataError, match="needs over 134217728 bytes"):
        load_records(SMALL, written(tmp_path, content, "x.jsonl.xz", source="jsonl"))
