"""Which tasks there are: those that installed packages bring (entry points `sovfed.tasks`), and files of their own.

A package is imported when its task is first asked for, and never because a message names it: what a message may name
is decided by the institution's policy before.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation import plugins
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import OWN
from sovfed.federation.tasks import Task, bases, sized
from sovfed.federation.text import ARCHIVE

if TYPE_CHECKING:
    from sovfed.federation.config import TaskConfig

GROUP: Final = "sovfed.tasks"
_ADDED: dict[str, list[Task]] = {}
_OFFERED: dict[str, Path] = {}


def names() -> tuple[str, ...]:
    """Every task that is known here, in alphabetical order."""
    return tuple(sorted({*plugins.installed(GROUP), *_ADDED, *_OFFERED}))


def offer(name: str, archive: Path) -> None:
    """Let a run choose by its name the task in `archive`; nothing of it is imported."""
    _OFFERED[name] = archive


def offered(name: str) -> Path | None:
    """The archive that was offered as `name`."""
    return _OFFERED.get(name)


def add(task: Task) -> Task:
    """Make `task` known in this process: the newest of its name, before an installed one.

    An earlier one whose model did not work goes: whoever mends a model in a notebook adds it again.
    """
    older = [version for version in _ADDED.get(task.name, []) if _digest(version) not in (None, _digest(task))]
    _ADDED[task.name] = [*older, task]
    return task


def add_archive(path: str | Path) -> Task:
    """The task in the archive `path`, its code imported into this process and known here by the task's name.

    Whoever names the file answers for its code: every byte is checked against its manifest, no signature is. Raises
    ConfigError.
    """
    from sovfed.federation.archive.opened import open_task

    return add(open_task(Path(path)))


def _digest(task: Task) -> str | None:
    """The task's digest; None if its model cannot be built."""
    try:
        return task.digest
    except Exception:  # the task's own code may raise whatever it likes
        return None


def versions(name: str) -> list[Task]:
    """Every task called `name`, the newest last. Raises ConfigError if there is none."""
    installed = [_load(name)] if name in plugins.installed(GROUP) or name not in _ADDED else []
    return [*installed, *_ADDED.get(name, [])]


def get_task(name: str, parameters: int | None = None, normalisation: str = OWN) -> Task:
    """The task called `name`; `parameters` is the length of the echo's vector, other tasks have their own.

    `normalisation` "group" makes every BatchNorm of its model a GroupNorm. Raises ConfigError with the nearest known
    name, or if a package does not bring what it says.
    """
    task = versions(name)[-1]
    return sized(task, parameters or task.length).with_normalisation(normalisation)


def configured_task(config: TaskConfig) -> Task:
    """The task that `config` names, with the model that it asks for; the code of an archive is imported."""
    bases.offer(config.base)
    if config.file is not None and config.file.endswith(ARCHIVE):
        add_archive(config.file)
    elif config.file is not None:
        _read(config.file)
    return get_task(config.name, config.parameters, config.normalisation)


@cache
def _read(file: str) -> Task:
    """The task in a file, added."""
    from sovfed.federation.tasks.declared import read_task

    return add(read_task(Path(file)))


@cache
def _load(name: str) -> Task:
    task = plugins.load(GROUP, "task", name, names())
    if not isinstance(task, Task) or task.name != name:
        raise ConfigError(f"{plugins.installed(GROUP)[name].value} is no Task called '{name}'")
    return task
