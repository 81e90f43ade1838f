"""What installed packages bring to sovfed: entry points, each a kind of thing ("task") under the name that runs use.

A package is imported when what it brings is first asked for, never because it is there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import nearest
from sovfed.federation.text import ARCHIVE

_BROUGHT: Final[dict[tuple[str, str], EntryPoint]] = {}  # by group and name, out of archives


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of `group` by name: of installed packages, and of archives that this process has opened."""
    return _installed(group) | {name: point for (of, name), point in _BROUGHT.items() if of == group}


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def bring(points: Iterable[EntryPoint]) -> None:
    """Make the entry points of an archive known. Raises ConfigError if one would take the place of another."""
    brought = {(point.group, point.name): point for point in points}
    for group, name in brought:
        if name in installed(group):
            raise ConfigError(
                f"'{name}' of {group}: there is one of that name here already, and an archive replaces none"
            )
    _BROUGHT.update(brought)


def load(group: str, kind: str, name: str, known: Collection[str]) -> Any:
    """What a package brings to `group` as `name`. Raises ConfigError, with the nearest of `known` if there is none."""
    point = installed(group).get(name)
    if point is None:
        meant = file_meant(name) if kind == "task" else ""
        raise ConfigError(f"unknown {kind} '{name[:64]}'{meant or nearest(name, known)}")
    try:
        return point.load()
    except Exception as error:  # the package's own
        raise ConfigError(f"{kind} '{name}' of {point.value} cannot be loaded: {error!r}") from error


def file_meant(name: str) -> str:
    """A hint at the task's file in this folder that is called like `name`, but for how it ends; "" if there is none."""
    if not re.fullmatch(r"\w[\w.-]{0,50}", name):
        return ""
    files = [Path(name).with_suffix(ending) for ending in (".yaml", ".yml", ARCHIVE)]
    return next((f" (did you mean the file '{file}', which is here?)" for file in files if file.is_file()), "")
