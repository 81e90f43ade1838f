"""Every command that README, the documents or a command's own help names is one that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sovfed.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = re.compile(r"(?:^\s*(?:[a-z0-9-]*\$ )?|`)sovfed ((?:[a-z][a-z-]*(?:\|[a-z-]+)* ?)+)", re.MULTILINE)


def commands(command: click.Command, path: str = "sovfed") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            member = command.get_command(context, name)
            assert member is not None, f"{path} {name}"
            yield from commands(member, f"{path} {name}")


def unknown(words: str) -> str | None:
    """The first word of `words` that names no command where a command must stand; `a|b` names both."""
    groups: list[click.Command] = [cli]
    for word in words.split():
        members = []
        for group in groups:
            if not isinstance(group, click.Group):
                return None  # what follows are arguments
            members += [(name, group.get_command(click.Context(group), name)) for name in word.split("|")]
        missing = [name for name, member in members if member is None]
        if missing:
            takes_more = all(isinstance(group, click.Group) and group.invoke_without_command for group in groups)
            return None if takes_more else missing[0]
        groups = [member for _, member in members if member is not None]
    return None


def test_there_is_every_command_that_a_text_names() -> None:
    texts = [(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")) for page in PAGES]
    texts += [(path, command.help or "") for path, command in commands(cli)]
    named = [(where, match[1].strip()) for where, text in texts for match in NAMED.finditer(text)]
    assert len(named) > 300
    assert [(where, words) for where, words in named if words and unknown(words)] == []


def test_what_is_missing_is_noticed() -> None:
    assert unknown("bench nothing") == "nothing"
    assert unknown("audit isolation|nothing") == "nothing"
    assert unknown("client model get birth") is None
    assert set(COMMANDS) <= {path.split()[-1] for path, _ in commands(cli)}


def test_every_command_has_examples_and_help_that_is_whole_at_80_columns() -> None:
    """README says so."""
    without, wide, cut = [], [], []
    for path, command in commands(cli):
        told = command.get_help(click.Context(command, info_name=path, terminal_width=80))
        shown = path if " log" not in path else path.replace("sovfed server", "sovfed client")
        if not re.search(rf"^ +(sudo )?({re.escape(path)}|{re.escape(shown)})( |$)", told, re.MULTILINE):
            without.append(path)
        wide += [line for line in told.splitlines() if len(line) > 80]
        listed = told.partition("\nCommands:\n")[2]
        cut += [f"{path}: {line}" for line in listed.splitlines() if line.endswith(("...", "al."))]
    assert (without, wide, cut) == ([], [], [])


def test_a_wrong_command_of_any_group_is_told_the_right_one() -> None:
    for path, command in commands(cli):
        if isinstance(command, click.Group):
            name = command.list_commands(click.Context(command))[0]
            with pytest.raises(click.UsageError, match=rf"did you mean '{name}'"):
                command.resolve_command(click.Context(command, info_name=path), [f"{name}x"])
