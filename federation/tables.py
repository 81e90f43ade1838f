"""Rows for people: as a table where it is whole, else each row below its first value. No name is ever broken or cut."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sovfed.federation.text import cell, visible

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH: Final = 80  # columns, where no terminal says how wide it is
EDGE: Final = 3  # columns of a table's line and blanks around each value


def print_rows(
    headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", console: Console | None = None
) -> None:
    """Print `rows` under `headings`, in what room there is. Values may be anybody's words."""
    from rich.console import Console

    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    shown = [[visible(value, keep="") for value in row] for row in rows]
    if _width(headings, shown) <= console.width:
        _table(console, headings, shown, title)
        return
    if title:
        console.print(cell(title), style="italic", soft_wrap=True)
    for first, *others in shown:
        console.print(cell(first), style="bold", soft_wrap=True)
        for line in _said(headings[1:], others, console.width):
            console.print(cell(line), soft_wrap=True)


def _width(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns that the table takes."""
    from rich.cells import cell_len

    return sum(max(map(cell_len, column)) + EDGE for column in zip(headings, *rows, strict=True)) + 1


def _table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    from rich.table import Column, Table

    table = Table(*(Column(cell(heading), no_wrap=True) for heading in headings), title=cell(title) or None)
    for row in rows:
        table.add_row(*map(cell, row))
    console.print(table)


def _said(headings: Sequence[str], values: Sequence[str], width: int) -> list[str]:
    """Each value behind its heading, a pair never parted where it has room on a line."""
    pairs = [f"{heading} {value}" for heading, value in zip(headings, values, strict=True) if value]
    lines = [""]
    for pair in pairs:
        longer = f"{lines[-1]}, {pair}" if lines[-1] else pair
        if len(longer) + 2 <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(pair)
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line, width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
    ]
