"""Rows are whole in 80 columns: as a table where that has room, else each below its first value."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sovfed.federation.tables import print_rows

RUN = "hip-fracture-20261129-201500-1f2e"
LISTS = {
    "run list": (
        ("run", "task", "status", "rounds", "sites", "started"),
        (RUN, "hip", "finished", "10/10", "4", "2026-11-29"),
    ),
    "ledger show": (
        ("run", "purpose", "mechanism", "z, q, clip", "steps", "state", "granted"),
        (RUN, "train", "distributed", "1.20312, 0.1, 1", "10 of 13", "3 reserved", "2026-11-29"),
    ),
    "client model list": (
        ("run", "task", "rounds", "privacy", "as published", "Flower's number"),
        (RUN, "hip", "10", "distributed, ε = 3.00", "not told", "13604719382615904826"),
    ),
    "personal list": (
        ("run", "Flower's number", "task", "strategy", "round", "what"),
        (RUN, "13604719382615904826", "hip", "ditto", "10", "a personal model"),
    ),
    "authority show": (
        ("name", "kind", "state", "until", "serial", "key", "key's age"),
        ("hospital-1", "institution", "valid", "2026-12-29", "6" * 40, "393c8c6a5ffa41ad…", "3 days"),
    ),
    "task show": (
        ("column", "kind", "values", "unit", "if missing", "role"),
        ("hours_to_surgery", "number", "0 to 240", "h", "0, and a column that says so", "input"),
    ),
}


def printed(headings: tuple[str, ...], rows: list[tuple[str, ...]], width: int) -> str:
    out = io.StringIO()
    print_rows(headings, rows, "a title", Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("name", LISTS)
def test_no_value_is_broken_or_cut_at_80_columns(name: str) -> None:
    headings, row = LISTS[name]
    told = printed(headings, [row], 80)
    assert all(len(line) <= 80 for line in told.splitlines())
    for value in row:
        assert value in told, told
    assert "…" not in told.replace("393c8c6a5ffa41ad…", "")


def test_what_has_room_is_a_table_and_markup_is_shown_as_it_is() -> None:
    told = printed(("name", "state"), [("[red]a[/red]", "up"), ("b\x1b[2J", "down")], 80)
    assert "┃ name" in told and "[red]a[/red]" in told and "\x1b" not in told
    assert len(told.splitlines()) == 7
