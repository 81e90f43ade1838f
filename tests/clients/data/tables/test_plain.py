"""Whatever is read by whole arrays is what Arrow and the words read, cell by cell: to the bit, with the same faults."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sovfed.clients.data.tables import pieces, plain, read_table
from sovfed.clients.data.tables.delimited import Delimited
from sovfed.clients.data.tables.words import Rules
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import Column, Schema, number, target

SCHEMA = Schema(
    columns=(
        number("a", -500, 500, missing="mean"), number("b", 0, 100),
        Column("grade", "category", categories=("none", "mild", "very severe")),
        Column("seen", "date", low=0.0, high=30_000.0, missing="mean"), target("ill", "no", "yes"),
    ),
    person="who",
)  # fmt: skip
NAMES = ("who", "a", "note", "b", "grade", "seen", "ill")
DIGITS = st.text("0123456789.,-+/ \"'<x", max_size=11)
NUMBERS = st.one_of(
    st.integers(-600, 600).map(str), st.decimals(-600, 600, places=3).map(str), DIGITS,
    st.floats(-100, 100).map(repr), st.sampled_from(("NA", "", "-", ".", "5.", ".5", "-.5", "007", "1/5", "1e2", "-0")),
)  # fmt: skip
ROWS = st.tuples(
    st.one_of(st.integers(0, 99).map(str), st.sampled_from(("", "Müller", "a b", "person-0000017", "null"))),
    NUMBERS, st.sampled_from(("", "x", "some words, and more", 'said "no"', "two\nlines", "ä" * 9, "\0")), NUMBERS,
    st.sampled_from(("none", "mild", "very severe", "MILD", " none", "", "ünknown")),
    st.sampled_from(("2020-01-31", "", "31.01.2020", "2020-01-31T10:00", "NA")),
    st.sampled_from(("no", "yes", "1", "0", "true", "")),
)  # fmt: skip
TABLES = st.lists(ROWS, min_size=1, max_size=12)


def _written(path: Path, rows: Sequence[tuple[str, ...]], separator: str, end: str, quoted: str) -> Path:
    def cell(text: str) -> str:
        needs = any(mark in text for mark in (separator, '"', "\n")) or quoted == "all" or (quoted == "words" and text)
        return '"' + text.replace('"', '""') + '"' if needs else text

    lines = [separator.join(map(cell, row)) for row in (NAMES, *rows)]
    path.write_text(end.join(lines) + end, encoding="utf-8", newline="")
    return path


def _read(path: Path, config: DataConfig, *, by_arrays: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    if not by_arrays:
        monkeypatch.setattr(plain, "takes", lambda encoding, separator: False)
    try:
        read = read_table(SCHEMA, Delimited(path, config, NAMES), config, keep=True)
    except DataError as error:
        return str(error)
    finally:
        monkeypatch.undo()
    assert read.lines is not None
    assert read.persons is not None
    report = read.report
    order = np.argsort(read.lines, kind="stable")
    table = {name: values[order].tobytes() for name, values in read.table.items()}
    persons = read.persons.take(pa.array(order)).to_pylist()
    counts = (report.rows, report.used, report.empty, report.bad, +Counter(report.missing))
    return table, persons, read.lines[order].tolist(), counts, sorted(report.bad_lines)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    TABLES, st.sampled_from((",", ";", "\t")), st.sampled_from(("\n", "\r\n")), st.sampled_from(("", "all", "words")),
    st.sampled_from((".", ",")), st.sampled_from((40, 200, 1 << 19)),
)  # fmt: skip
def test_a_table_reads_the_same_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, ...]], separator: str, end: str, quoted: str,
    decimal: str, piece: int,
) -> None:  # fmt: skip
    path = _written(tmp_path / "t.csv", rows, separator, end, quoted)
    config = DataConfig(source="csv", path=str(path), separator=separator, decimal=decimal, encoding="utf-8")
    monkeypatch.setattr(pieces, "PIECE", piece)
    by_arrays = _read(path, config, by_arrays=True, monkeypatch=monkeypatch)
    assert by_arrays == _read(path, config, by_arrays=False, monkeypatch=monkeypatch)


@settings(max_examples=150, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=40), st.sampled_from((".", ",")))
def test_a_number_is_what_the_rules_say_or_is_none_here(cells: list[str], mark: str) -> None:
    cells = [cell.replace(";", "").replace('"', "") for cell in cells]
    text = "".join(f"{cell};{cell}\n" for cell in cells).encode()
    piece = plain.split(bytearray(text + bytes(plain.PAD)), len(text), ";", 2)
    assert piece is not None
    numbers = piece.numbers([0, 1], mark)
    for row, cell in enumerate(cells):
        value, fault = Rules(mark).number(cell)
        if numbers.other is None or not numbers.other[row, 0]:
            assert fault in ("", "missing")
            assert np.array_equal(numbers.values[row], [value, value], equal_nan=True)
            assert np.signbit(numbers.values[row, 0]) == np.signbit(value) or np.isnan(value)


def test_every_number_of_three_decimals_is_exact() -> None:
    values = [f"{thousandths / 1000:.3f}" for thousandths in range(-99_999, 100_000, 7)]
    text = "".join(f"{value}\n" for value in values).encode()
    piece = plain.split(bytearray(text + bytes(plain.PAD)), len(text), ",", 1)
    assert piece is not None
    numbers = piece.numbers([0], ".")
    assert numbers.other is None
    assert numbers.values[:, 0].tolist() == list(map(float, values))


@pytest.mark.parametrize(
    "text", ["a,b\n1\n", 'a,"b\nc",d\n', 'a,"b"c\n', 'a,b"c\n', "a,b\0\n", "a\r,b\r\n", "a\r\nb\n"]
)
def test_what_may_mean_something_else_is_left_to_arrow(text: str) -> None:
    content = text.encode()
    assert (
        plain.split(bytearray(content + bytes(plain.PAD)), len(content), ",", text.partition("\n")[0].count(",") + 1)
        is None
    )


@pytest.mark.parametrize("decimal", [".", ","])
def test_long_numbers_and_a_few_words_among_them_read_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decimal: str
) -> None:
    """In pieces of few rows: some have long numbers only, some a word among short ones, some both."""
    long = [f"{row / 7!r}".replace(".", decimal) for row in range(300)]
    cells = [f"<0{decimal}2" if row % 50 == 0 else "NA" if row % 11 == 0 else text for row, text in enumerate(long)]
    cells[200:] = map(str, range(200, 300))
    rows = [(f"p{row}", cells[row], "", long[row], "none", "2020-01-31", "no") for row in range(300)]
    path = _written(tmp_path / "t.csv", rows, ";", "\n", "")
    for limit, words in (("refuse", ()), ("limit", ("-99", "5"))):
        config = DataConfig(
            source="csv", path=str(path), separator=";", decimal=decimal, encoding="utf-8", detection_limit=limit,
            missing_words=words,
        )  # fmt: skip
        for piece in (300, 2000, 1 << 19):
            monkeypatch.setattr(pieces, "PIECE", piece)
            by_arrays = _read(path, config, by_arrays=True, monkeypatch=monkeypatch)
            assert by_arrays == _read(path, config, by_arrays=False, monkeypatch=monkeypatch)
