"""Reading an institution's files with the checks that every connector makes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def unreadable(path: Path, error: OSError) -> DataError:
    """What to say of a file that cannot be opened: the sealed trainer may be why."""
    hint = ""
    if isinstance(error, PermissionError):
        hint = (
            "; if it was replaced since the trainer started, and its folder holds the home, `sovfed client down` and "
            "`up` let the trainer see the new one"
        )
    return DataError(f"{path}: cannot be read ({error.strerror}){hint}")


def read_file(path: Path, max_bytes: int, sha256: str | None = None, *, setting: str = "data.path") -> bytes:
    """The bytes of a regular, non-empty file of at most `max_bytes`, with checksum `sha256` if one is known.

    `setting` is what names it. Raises DataError.
    """
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; check {setting}")
        size = path.stat().st_size
        if size == 0:
            raise DataError(f"{path}: the file is empty; check {setting}")
        if size > max_bytes:
            raise DataError(f"{path}: {size} bytes, expected {max_bytes} at most")
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    if sha256 is not None and (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise DataError(f"{path}: SHA-256 is {digest[:16]}…, the published file has {sha256[:16]}…")
    return content
