"""The tasks that a home has of its own: files that its operator put there, by digest, and nobody else can.

tasks/NAME-DIGEST/task.yaml     DIGEST: the first 32 digits of `Task.digest`
tasks/NAME-DIGEST/base          of a task that builds on a model of Hugging Face: the folder where it lies here
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.tasks import bases, registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)
FOLDER: Final = "tasks"
FILE: Final = "task.yaml"
BASE: Final = "base"
DIGITS: Final = 32  # of a digest in names: of fewer an author can make two tasks that share them (16: 2^32 tries)


def read_bounded(file: Path) -> bytes:
    """What is in `file`, which may be no larger than a task is. Raises ConfigError."""
    from sovfed.federation.tasks.document import MAX_BYTES

    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{file}: over {MAX_BYTES} bytes, which no task has")
    return content


class Shelf:
    """The tasks in `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def put(self, file: Path) -> tuple[Task, Path]:
        """Copy the task in `file` here, and make it known; the task and where it lies. Raises ConfigError."""
        from sovfed.federation.tasks.declared import task_from_text

        content = read_bounded(file)
        task = task_from_text(content)
        folder = self._home / FOLDER / f"{task.name}-{task.digest[:DIGITS]}"
        private_directory(self._home / FOLDER)
        private_directory(folder)
        if base := task.base:
            write_private(folder / BASE, str(bases.find(base).resolve()).encode())
        write_private(folder / FILE, content)
        return registry.add(task), folder / FILE

    def files(self) -> Iterator[Path]:
        """The files of all tasks here, the oldest first."""
        yield from sorted((self._home / FOLDER).glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime_ns)

    def tasks(self) -> list[Task]:
        """All tasks here, the oldest first. Raises ConfigError if one was changed since it was put here."""
        return [self._read(path) for path in self.files()]

    def make_known(self, allowed: Callable[[Task], bool] = lambda _task: True) -> list[Task]:
        """Make the tasks here that are `allowed` known in this process, and return them.

        One that cannot be read, or is not allowed, is told in the log.
        """
        added = []
        for path in self.files():
            try:
                task = self._read(path)
            except ConfigError as error:
                log.warning("a task is left out: %s", error)
                continue
            if allowed(task):
                added.append(registry.add(task))
            else:
                log.info("task %s is left out: no entry of allowed_tasks has its name and digest", path.parent.name)
        return added

    def _read(self, path: Path) -> Task:
        from sovfed.federation.tasks.declared import read_task

        if (path.parent / BASE).exists():
            bases.offer((path.parent / BASE).read_text(encoding="utf-8"))
        task = read_task(path)
        name, _, digest = path.parent.name.rpartition("-")
        if task.name != name or not task.digest.startswith(digest) or len(digest) != DIGITS:
            raise ConfigError(f"{path}: changed since it was put here: its digest is {task.digest[:DIGITS]} now")
        return task
