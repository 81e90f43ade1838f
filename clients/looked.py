"""The records of every study looked at as a run would read them, before one does: what fails, where, and the fix.

A line names study, task, column, count and first lines, and never a value.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError, SovfedError, WrongTaskError
from sovfed.federation.tasks import registry
from sovfed.federation.text import AT, names_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.clients.policy import Policy
    from sovfed.federation.config import ClientConfig, DataConfig
    from sovfed.federation.tasks import Task

QUICK_BYTES: Final = 200 * 2**20  # of records; more are not read just to look
MANY_FILES: Final = 10_000  # in a folder; nor are these


def allowed_tasks(config: ClientConfig, policy: Policy) -> list[Task]:
    """The newest version of every task that `policy` allows and this institution has."""
    from sovfed.clients.packages import make_outlines_known
    from sovfed.federation.tasks.shelf import Shelf

    Shelf(Path(config.home)).make_known(policy.allows_own)
    make_outlines_known(Path(config.home), policy)
    return [task for entry in policy.allowed_tasks if (task := _newest(entry)) is not None]


def data_findings(config: ClientConfig, policy: Policy, study: str | None = None) -> list[str]:
    """What keeps the records of the tasks that `policy` allows from being used, a line each; of `study` alone if given.

    Large tables, and databases, are not read: a line says so.
    """
    lines = dict[str, None]()
    for task in allowed_tasks(config, policy):
        try:
            name = config.study_of(task)
            if task.build is not None and study in (None, name):
                lines.update(dict.fromkeys(_told(name, task, config.data_of(task))))
        except WrongTaskError as error:
            lines[str(error)] = None
    return list(lines)


def reads_itself(task: Task, data: DataConfig) -> bool:
    """Whether a connector out of the task's own archive is named, which is code that only the trainer imports."""
    from sovfed.clients.data import sources
    from sovfed.federation.archive.outline import Outline

    return isinstance(task, Outline) and data.source not in sources()


def _newest(entry: str) -> Task | None:
    try:
        versions = registry.versions(entry.partition(AT)[0])
    except ConfigError:  # a run is told that there is none
        return None
    if AT not in entry:
        return versions[-1]
    return next((task for task in reversed(versions) if names_task(entry, task.name, task.digest)), None)


def _told(study: str, task: Task, data: DataConfig) -> Iterator[str]:
    where = f"{'data' if study == 'data' else f'study {study}'}, task {task.name}: "
    if reason := _not_quick(data):
        yield f"{where}{reason} and not looked at here; `sovfed client check-data` does"
        return
    if reads_itself(task, data):
        yield f"{where}read by the package's own connector, which runs in the trainer alone, and not looked at here"
        return
    from sovfed.clients.data.survey import report

    try:
        result = report(task, data)
    except SovfedError as error:
        yield f"{where}the records cannot be used: {error}"
        return
    if not result.usable:
        yield f"{where}{result.bad} of {result.rows} rows are at fault, and no run can use the records"
    yield from (f"{where}{fault}" for fault in result.faults)
    yield from (f"{where}{warning}" for warning in result.warnings)


def _not_quick(data: DataConfig) -> str:
    """Why it would take long to read the records; "" if it would not."""
    if data.url_file is not None:
        return "a database"
    if data.path is None:
        return ""
    size = 0
    for count, path in enumerate(_files(Path(data.path).expanduser())):
        size += _size(path)
        if size > QUICK_BYTES or count >= MANY_FILES:
            return f"more than {QUICK_BYTES >> 20} MB" if size > QUICK_BYTES else f"more than {MANY_FILES} files"
    return ""


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, _, files in os.walk(path):
        yield from (Path(folder) / name for name in files)


def _size(path: Path) -> int:
    """In bytes; 0 where there is none, of which the connector will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
