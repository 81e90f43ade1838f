"""A zip file of one single form: equal entries give equal bytes, and bytes of any other form are refused.

Entries are stored as they are, sorted, without times, comments, folders or links. So nothing grows when it is read, and
what is not a file in the list, before, behind or between, cannot be there: `read` writes what it found again and
compares.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_BYTES: Final = 64 << 20
MAX_FILES: Final = 2_000
MAX_DEPTH: Final = 12
MAX_NAME: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*", re.ASCII)
_END: Final = struct.Struct("<4s4H2LH")  # the record that ends a zip file, here without a comment
_FIRST_DAY: Final = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE: Final = 0o100444 << 16


def write(entries: Mapping[str, bytes], *, most: int = 0) -> bytes:
    """The one zip file of `entries`, by name. Raises ConfigError for names or sizes that no archive may have.

    `most` is how many bytes it may hold, else `MAX_BYTES`.
    """
    check_names(entries)
    most = most or MAX_BYTES
    if sum(map(len, entries.values())) > most:
        raise ConfigError(f"more than {most >> 20} MiB, which is more than is taken")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED, allowZip64=False) as file:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, _FIRST_DAY)
            info.create_system, info.external_attr = 3, _PLAIN_FILE
            file.writestr(info, entries[name])
    return content.getvalue()


def read(data: bytes, *, most: int = 0, what: str = "archive of a task") -> dict[str, bytes]:
    """The entries that `data` holds. Raises ConfigError, and nothing else, unless `write` gives these very bytes."""
    _check_end(data, most or MAX_BYTES, what)
    try:
        entries = _entries(data)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        struct.error,
        ValueError,
        OSError,
    ) as error:
        raise ConfigError(f"not an {what}: {visible(str(error), keep='')}") from error
    if write(entries, most=most) != data:
        raise ConfigError(f"not an {what}: bytes beside its files, or another form of zip than is written")
    return entries


def check_names(names: Iterable[str]) -> None:
    """Raise ConfigError unless `names` are plain relative paths, few, and different on every file system."""
    listed = list(names)
    if len(listed) > MAX_FILES:
        raise ConfigError(f"{len(listed)} files, at most {MAX_FILES} are taken")
    folded, folders = set[str](), set[str]()
    for name in listed:
        parts = name.split("/")
        if len(name) > MAX_NAME or len(parts) > MAX_DEPTH or not all(map(_plain, parts)):
            raise ConfigError(f"file name {name[:80]!a}: expected words of A-Z a-z 0-9 _ . + @ - between single '/'")
        lower = name.lower()
        if lower in folded:
            raise ConfigError(f"file name {name!a}: comes twice, or differs from another in case alone")
        folded.add(lower)
        folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
    lowered = {folder.lower() for folder in folders}
    if len(lowered) != len(folders) or lowered & folded:
        raise ConfigError("two folders differ in case alone, or a folder is called as a file is")


def _plain(word: str) -> bool:
    return _NAME.fullmatch(word) is not None and not word.endswith(".")


def _check_end(data: bytes, most: int, what: str) -> None:
    """Raise ConfigError unless the record at the end names as few entries as may be read, and nothing stands beside."""
    if len(data) > most + (MAX_FILES << 10):
        raise ConfigError(f"more than {most >> 20} MiB, which is more than is taken")
    if len(data) < _END.size:
        raise ConfigError(f"not an {what}: too short")
    mark, _, _, listed, count, size, start, comment = _END.unpack_from(data, len(data) - _END.size)
    if mark != b"PK\5\6" or comment or listed != count or start + size + _END.size != len(data):
        raise ConfigError(f"not an {what}: no zip file that ends where its list of files ends")
    if count > MAX_FILES:
        raise ConfigError(f"{count} files, at most {MAX_FILES} are taken")


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        infos = file.infolist()
        check_names(info.filename for info in infos)
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits for info in infos):
            raise ConfigError("not an archive of a task: its files are compressed or encrypted")
        if sum(info.file_size for info in infos) > len(data):  # stored, they are no longer than the file
            raise ConfigError("not an archive of a task: its files are longer than it is")
        return {info.filename: file.read(info) for info in infos}
