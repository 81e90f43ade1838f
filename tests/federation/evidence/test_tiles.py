"""An exported log is C2SP tlog-tiles: whoever has the folder alone computes the root that the checkpoint signs."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from sovfed.federation.errors import ConfigError
from sovfed.federation.evidence.notes import read_checkpoint
from sovfed.federation.evidence.store import LogReader, record
from sovfed.federation.evidence.tiles import export, path_of


def _root(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, by its own words."""
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + _root(leaves[:split]) + _root(leaves[split:])).digest()


def test_the_folder_alone_gives_the_root(hospital: Path, tmp_path: Path) -> None:
    for number in range(260):
        record(hospital, "round", round=number)

    assert export(LogReader(hospital), tmp_path / "log") == (267, 0)

    tiles = [tmp_path / "log/tile/entries/000", tmp_path / "log/tile/entries/001.p/11"]
    leaves, data = [], b"".join(tile.read_bytes() for tile in tiles)
    while data:
        (length,) = struct.unpack(">H", data[:2])
        leaves.append(data[2 : 2 + length])
        data = data[2 + length :]
    head = read_checkpoint((tmp_path / "log/checkpoint").read_bytes())
    assert (head.size, head.root) == (267, _root(leaves))
    assert (tmp_path / "log/tile/0/000").read_bytes()[:32] == hashlib.sha256(b"\0" + leaves[0]).digest()
    assert (tmp_path / "log/tile/1/000.p/1").read_bytes() == _root(leaves[:256])
    with pytest.raises(ConfigError):
        export(LogReader(hospital), tmp_path / "log")


def test_tiles_are_named_as_the_specification_does() -> None:
    assert path_of(1_234_067) == "x001/x234/067"
    assert path_of(3, 5) == "003.p/5"
