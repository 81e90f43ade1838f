"""Entries of a log for people, whole in what columns there are: on one line, else what is said below when and what."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from sovfed.federation.text import day, visible

PIPE_WIDTH: Final = 160  # columns: most entries are on one line there, for who searches
INDENT: Final = " " * 8  # below the time
DEEPER: Final = INDENT + "  "


def columns() -> int:
    """Of the terminal, or of what a pipe is given."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH


def entry_lines(seq: int, values: dict[str, Any], width: int) -> list[str]:
    """Entry number `seq` in lines of at most `width`; only a single word that is longer sticks out."""
    fields = {name: value for name, value in values.items() if name not in ("at", "kind", "v")}
    pairs = [visible(f"{name}={json.dumps(value, ensure_ascii=False)}") for name, value in fields.items()]
    head = visible(f"{seq:6}  {day(values['at'], '%F %T')}  {values['kind']:10}")
    whole = "  ".join((head, *pairs))
    return [whole] if len(whole) <= width else [head.rstrip(), *_below(pairs, width)]


def hung(line: str, width: int) -> str:
    """`line` with what has no room below it, four columns in."""
    return "\n".join(
        textwrap.wrap(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    )


def _below(pairs: list[str], width: int) -> Iterator[str]:
    """As many of `pairs` on each line as it has room for; one that has none goes on below itself."""
    line = ""
    for pair in pairs:
        longer = f"{line}  {pair}" if line else INDENT + pair
        if len(longer) <= width:
            line = longer
            continue
        if line:
            yield line
        *done, line = _folded(pair, width)
        yield from done
    if line:
        yield line


def _folded(pair: str, width: int) -> list[str]:
    if len(INDENT + pair) <= width:
        return [INDENT + pair]
    name, _, value = pair.partition("=")
    return textwrap.wrap(
        f"{name}= {value}", width, initial_indent=INDENT, subsequent_indent=DEEPER, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
