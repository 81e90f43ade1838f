"""The agency's tasks that are archives: added by its operator, chosen by their names, checked again before each use."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.archive.adding import add, checked
from sovfed.federation.archive.archive import read_archive
from sovfed.federation.archive.kept import folders, read_kept
from sovfed.federation.archive.review import Rule
from sovfed.federation.errors import SovfedError
from sovfed.federation.files import private_directory, write_atomic
from sovfed.federation.tasks import registry
from sovfed.federation.text import ARCHIVE
from sovfed.server.home import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.archive.archive import Archive
    from sovfed.federation.config import Config

log = logging.getLogger(__name__)
FILES: Final = "task-files"  # each archive as one file, for runs to name


def rule_of(home: Path) -> Rule:
    """How many reviews the agency wants to see, as `sovfed server init` fixed it."""
    server = load_settings(home).server
    return Rule(server.min_reviewers, server.min_reviewing_organisations)


def added(home: Path, file: Path) -> Iterator[str]:
    """Check the archive `file` and keep it in the agency's `home`; lines for the operator. Raises SovfedError."""
    yield from add(home, file, rule_of(home), lambda _manifest: True)
    archive = read_archive(file)
    yield f"next: sovfed run start task={archive.manifest.name}, once each institution has added {file.name}"


def offer(home: Path) -> None:
    """Let runs choose the newest archive of each task in `home` by its name; nothing is imported."""
    for folder in folders(home):
        try:
            archive = read_kept(folder)
        except SovfedError as error:
            log.warning("a task is left out: %s", error)
            continue
        path = private_directory(home / FILES) / f"{folder.name}{ARCHIVE}"
        write_atomic(path, archive.to_bytes(), 0o600)
        registry.offer(archive.manifest.name, path)


def require_reviewed(home: Path, config: Config) -> Archive | None:
    """The archive that `config` chooses, if it does, once signatures and reviews hold. Raises SovfedError."""
    if config.task.file is None or not config.task.file.endswith(ARCHIVE):
        return None
    archive = read_archive(Path(config.task.file))
    checked(archive, home / "identity", rule_of(home))
    return archive


def in_folder(folder: Path, config: Config, archive: Archive) -> Config:
    """`config` with the very archive that was checked, in the run's `folder`: what is trained stays what it was."""
    path = folder / f"task{ARCHIVE}"
    write_atomic(path, archive.to_bytes(), 0o600)
    return dataclasses.replace(config, task=dataclasses.replace(config.task, file=str(path)))


def listed(home: Path) -> Iterator[str]:
    """A line for each archive in `home`."""
    for folder in folders(home):
        manifest = read_kept(folder).manifest
        yield f"{manifest.name}  version {manifest.version}  {manifest.digest}  {manifest.title}"
