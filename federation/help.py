"""Help that is whole: a group says what each command does, and no line is wider than a terminal of 80 columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Final

import click

VERBATIM: Final = "\b"  # Click's mark of a paragraph that is not wrapped
HANGING: Final = 4
WORD: Final = "\x00"  # a blank at which nothing is folded
SENTENCE: Final = 10_000  # characters: more than any command's first one has
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


class Group(click.Group):
    """Lists its commands with the whole first sentence of each, and says which one was meant by a wrong name."""

    group_class = type  # groups within it are such groups too

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        listed = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(SENTENCE)) for name, command in listed if command])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            from sovfed.federation.schema import nearest

            ctx.fail(f"No such command '{args[0]}'{nearest(args[0], names)}.")
        return super().resolve_command(ctx, args)


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
