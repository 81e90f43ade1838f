"""Files of an archive in a folder, readable and nothing else."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.archive.archive import CONTENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

READABLE: Final = 0o400
ENTERABLE: Final = 0o500


def unpack(folder: Path, entries: Mapping[str, bytes]) -> None:
    """Write `entries` into the empty `folder`, and let nobody change it any more."""
    for name, data in entries.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(data)
        path.chmod(READABLE)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(ENTERABLE)


def remove(folder: Path) -> None:
    """Delete `folder`, if it is there."""
    if not folder.exists():
        return
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())):
        path.chmod(0o700)
    shutil.rmtree(folder)


def content_of(folder: Path) -> Path:
    """The files of the archive that is unpacked in `folder`."""
    return folder / CONTENT.rstrip("/")


@contextmanager
def unpacked(entries: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder that holds `entries`, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="sovfed-task-"))
    try:
        unpack(folder, entries)
        yield folder
    finally:
        remove(folder)


def unpacked_for_long(entries: Mapping[str, bytes]) -> Path:
    """A folder that holds `entries`, until this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="sovfed-task-"))
    atexit.register(remove, folder)
    unpack(folder, entries)
    return folder
