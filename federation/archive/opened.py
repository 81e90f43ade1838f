"""The task of an archive that somebody names by its file: `simulate task=FILE.sovtask` on one's own machine.

Every byte is the manifest's; whose signatures it bears is not asked here. An agency and an institution ask before
(`server/own_tasks.py`, `clients/home/packages.py`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sovfed.federation.archive.archive import Archive, read_archive
from sovfed.federation.archive.loading import load_task
from sovfed.federation.archive.unpacked import unpacked_for_long
from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from sovfed.federation.tasks import Task


def open_task(path: Path) -> Task:
    """The task in the archive `path`, its code imported. Raises ConfigError."""
    stat = path.stat() if path.exists() else None
    return _open(path, None if stat is None else (stat.st_mtime_ns, stat.st_size))


@cache
def _open(path: Path, _stamp: object) -> Task:
    archive = read_archive(path)
    return task_in(unpacked_for_long(archive.content), archive)


def task_in(folder: Path, archive: Archive) -> Task:
    """The task of `archive`, whose files lie in `folder`. Raises ConfigError if it is not what the manifest says."""
    task = load_task(folder, archive.manifest.digests, archive.manifest.entry)
    if (task.name, task.digest) != (archive.manifest.name, archive.manifest.digest):
        raise ConfigError(
            f"{folder}: its code makes task {task.name[:64]!r} of digest {task.digest[:16]}…, the manifest says "
            f"{archive.manifest.name} of {archive.manifest.digest[:16]}…"
        )
    return task
