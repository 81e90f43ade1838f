"""A log as files that any tool for transparency logs reads: C2SP tlog-tiles.

checkpoint, tile/L/N and tile/entries/N, of 256 hashes or entries each; the last of a row is partial, N.p/W.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.evidence.notes import read_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.evidence.store import LogReader

WIDTH: Final = 256
HEIGHT: Final = 8


def export(log: LogReader, folder: Path) -> tuple[int, int]:
    """Write the log into the new `folder`; how many entries it has, and how many of them are empty: no longer kept.

    Raises ConfigError if the folder exists.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists; choose a new folder")
    note = log.head()
    size = read_checkpoint(note).size
    nodes = {(level, position): value for level, position, value in log.nodes(size)}
    level, count = 0, size
    while count:
        hashes = [nodes[level * HEIGHT, position] for position in range(count)]
        _write(folder / "tile" / str(level), hashes)
        level, count = level + 1, count >> HEIGHT
    kept = dict(log.entries(0, size))
    entries = [kept.get(seq, b"") for seq in range(size)]
    _write(folder / "tile" / "entries", [struct.pack(">H", len(data)) + data for data in entries])
    (folder / "checkpoint").write_bytes(note)
    return size, size - len(kept)


def path_of(number: int, width: int = WIDTH) -> str:
    """The path of tile `number`: groups of three digits, all but the last begun with x."""
    digits = f"{number % 1000:03}"
    while number := number // 1000:
        digits = f"x{number % 1000:03}/{digits}"
    return digits if width == WIDTH else f"{digits}.p/{width}"


def _write(folder: Path, values: list[bytes]) -> None:
    for start in range(0, len(values), WIDTH):
        tile = values[start : start + WIDTH]
        path = folder / path_of(start // WIDTH, len(tile))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(tile))
