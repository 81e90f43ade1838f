"""Help that is whole on a terminal of 80 columns: what stands there as it was written is folded where it is wider."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Final

import click

VERBATIM: Final = "\b"  # Click's mark of a paragraph that is not wrapped
HANGING: Final = 4
WORD: Final = "\x00"  # a blank at which nothing is folded
_QUOTED: Final = re.compile(r"\"[^\"]*\"|'[^']*'")
_NOTED: Final = re.compile(r"( *)(\S.*?\S) {2,}(\S.*)")  # a command, a gap, and what it does


class FoldingFormatter(click.HelpFormatter):
    """Click's, whose verbatim paragraphs have no line that is wider than the terminal."""

    def write_text(self, text: str) -> None:
        room, paragraphs = max(self.width - self.current_indent, 11), []
        for paragraph in re.split(r"\n\n", text):
            lines = paragraph.split("\n")
            if lines[0].strip() == VERBATIM:
                lines = [lines[0], *(part for line in lines[1:] for part in folded(line, room))]
            paragraphs.append("\n".join(lines))
        super().write_text("\n\n".join(paragraphs))


def folded(line: str, room: int) -> Iterator[str]:
    """`line` in lines of at most `room`: what it does goes below it, one command goes on after a backslash."""
    if len(line) <= room:
        yield line
        return
    noted = _NOTED.fullmatch(line)
    if noted is not None:
        indent, command, note = noted.groups()
        yield from folded(indent + command, room)
        yield from _wrapped(note, indent + " " * HANGING, indent + " " * HANGING, room)
        return
    indent = line[: len(line) - len(line.lstrip())]
    is_command = line.split(maxsplit=1)[0] in ("sovfed", "sudo", "ssh")
    parts = list(_wrapped(line.strip(), indent, indent + " " * HANGING * is_command, room - 2 * is_command))
    yield from (f"{part} \\" for part in parts[:-1]) if is_command else parts[:-1]
    yield parts[-1]


def _wrapped(text: str, first: str, rest: str, room: int) -> list[str]:
    """`text` in lines of at most `room`, what stands between quotes on one of them."""
    kept = _QUOTED.sub(lambda quoted: quoted[0].replace(" ", WORD), text)
    lines = textwrap.wrap(
        kept, room, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(WORD, " ") for line in lines]
