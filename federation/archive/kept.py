"""Archives unpacked in a home, readable and nothing else, and read from there again with every byte checked.

tasks/NAME-DIGEST/manifest.json, content/…, signatures/…     DIGEST: the first 32 digits of the task's
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sovfed.federation.archive import zipped
from sovfed.federation.archive.archive import MANIFEST, Archive, parse
from sovfed.federation.archive.unpacked import remove, unpack
from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.files import private_directory
from sovfed.federation.tasks.shelf import DIGITS, FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator


def keep(home: Path, archive: Archive) -> Path:
    """Unpack `archive` in `home`, in the place of what was kept of the same task; its folder."""
    shelf = private_directory(private_directory(home) / FOLDER)
    folder = shelf / f"{archive.manifest.name}-{archive.manifest.digest[:DIGITS]}"
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=shelf))
    try:
        unpack(draft, archive.entries())
        remove(folder)
        draft.rename(folder)
    except BaseException:
        remove(draft)
        raise
    return folder


def folders(home: Path) -> list[Path]:
    """The folder of each archive that is kept in `home`, the oldest first."""
    paths = [path.parent for path in (home / FOLDER).glob(f"[!.]*/{MANIFEST}")]
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


def read_kept(folder: Path) -> Archive:
    """The archive that `keep` unpacked into `folder`. Raises ConfigError or IdentityError if anything was changed."""
    try:
        archive = parse(dict(_entries(folder)))
    except SovfedError as error:
        raise type(error)(f"{folder}: {error}") from error
    if folder.name != f"{archive.manifest.name}-{archive.manifest.digest[:DIGITS]}":
        raise ConfigError(f"{folder}: changed since it was put here: the manifest is that of {archive.manifest.name}")
    return archive


def _entries(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file beneath `folder`; no link is followed."""
    size = count = 0
    for directory, names, files in os.walk(folder):
        if any((Path(directory) / name).is_symlink() for name in names):
            raise ConfigError(f"a link in {directory}, which no archive has")
        if not names and not files:
            raise ConfigError(f"{directory} is empty, which no archive has")
        for name in files:
            data = _read(Path(directory) / name)
            count, size = count + 1, size + len(data)
            if count > zipped.MAX_FILES or size > zipped.MAX_BYTES:
                raise ConfigError(f"more than {zipped.MAX_FILES} files or {zipped.MAX_BYTES >> 20} MiB")
            yield (Path(directory) / name).relative_to(folder).as_posix(), data


def _read(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: no plain file")
            return file.read(zipped.MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
