"""A table reads the same however it falls into pieces, and numbers as text as the rules read each: to the bit."""

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

from sovfed.clients.data.tables import delimited, read_table
from sovfed.clients.data.tables.cells import Decoder
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


def _read(path: Path, config: DataConfig, *, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    if not pieces:
        monkeypatch.setattr(delimited, "ENCODINGS", frozenset())
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


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    monkeypatch.setattr(delimited, "PIECE", piece)
    in_pieces = _read(path, config, pieces=True, monkeypatch=monkeypatch)
    assert in_pieces == _read(path, config, pieces=False, monkeypatch=monkeypatch)


@settings(max_examples=150)
@given(st.lists(NUMBERS, min_size=1, max_size=40), st.sampled_from((".", ",")), st.sampled_from(("refuse", "limit")))
def test_numbers_as_text_are_read_as_the_rules_read_each(cells: list[str], mark: str, limits: str) -> None:
    rules = Rules(mark, limits, more_absent=("-99", "5"))
    decoded = Decoder(number("a", -1e9, 1e9, missing="mean"), rules).decode([pa.array(cells, pa.string())])
    for row, cell in enumerate(cells):
        value, fault = rules.number(cell)
        told = {kind for kind, mask in decoded.faults if mask[row]}
        outside = {"outside"} if not fault and not -1e9 <= value <= 1e9 else set()
        assert told == ({fault} - {"", "missing"}) | outside
        assert np.array_equal(decoded.values[row], np.float32("nan" if fault else value), equal_nan=True)


def test_numbers_are_exact_and_read_together() -> None:
    values = [f"{thousandths / 1000:.3f}" for thousandths in range(-99_999, 100_000, 7)]
    decoder = Decoder(number("a", -100, 100), Rules())
    decoded = decoder.decode([pa.array([*values, "<x"], pa.string())])
    assert decoded.values[:-1].tolist() == np.array(list(map(float, values)), np.float32).tolist()
    assert list(decoder._known) == ["<x"]  # the only one that was read by itself


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
            monkeypatch.setattr(delimited, "PIECE", piece)
            in_pieces = _read(path, config, pieces=True, monkeypatch=monkeypatch)
            assert in_pieces == _read(path, config, pieces=False, monkeypatch=monkeypatch)
