"""Files without a name: sealed before they go to another process, and read without becoming part of this one."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.stored import (
    PIECE_BYTES,
    Pieces,
    Plot,
    Stretch,
    draft,
    handed_over,
    in_memory,
    on_disk,
    origin,
    spooled,
)

SIZE = 3 * PIECE_BYTES


def filled(size: int = SIZE) -> npt.NDArray[np.uint8]:
    return np.arange(size, dtype=np.uint8)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_sealed_file_can_neither_be_written_into_nor_be_cut_short_by_anyone() -> None:
    stored = in_memory(SIZE)
    stored.write(0, filled().data)
    view = stored.view()
    stored.seal()
    with pytest.raises(PermissionError):
        stored.write(0, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(stored.descriptor, 1)
    other = handed_over(os.dup(stored.descriptor), SIZE)
    assert other.view() == view == filled().data


def test_what_is_handed_over_is_a_sealed_file_that_is_not_too_long(tmp_path: Path) -> None:
    def of(path: Path) -> int:
        path.write_bytes(b"12345678")
        return os.open(path, os.O_RDWR)

    sealed = in_memory(8)
    sealed.seal()
    one, other = socket.socketpair()
    read, write = os.pipe()
    unsealed = in_memory(8)
    wrong = (os.dup(unsealed.descriptor), of(tmp_path / "file"), one.detach(), read, os.memfd_create("empty"))
    for descriptor in wrong:
        with pytest.raises(ProtocolError):
            handed_over(descriptor, 100)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)  # closed
    with pytest.raises(ServiceError, match="8 bytes, limit is 7"):
        handed_over(os.dup(sealed.descriptor), 7)
    assert handed_over(os.dup(sealed.descriptor), 8).size == 8
    other.close()
    os.close(write)


def test_a_vector_in_a_file_is_known_by_where_it_lies() -> None:
    plot = Plot(SIZE, in_memory(SIZE + 3), 3)
    for start in range(0, SIZE, PIECE_BYTES):
        plot.write(start, filled()[start : start + PIECE_BYTES].data)
    vector = np.frombuffer(plot.whole(), np.uint8)[100:-20]
    stretch = origin(vector)
    assert isinstance(stretch, Stretch)
    assert (stretch.offset, stretch.length) == (103, SIZE - 120)
    assert stretch.read(5, 10) == filled()[105:115].tobytes()
    assert origin(vector.data.cast("B")) == stretch
    assert origin(vector.copy()) is None
    assert origin(np.frombuffer(Plot(8).whole(), np.uint8)) is None


def test_what_lies_on_disk_is_read_by_pieces_and_does_not_become_part_of_the_process(tmp_path: Path) -> None:
    size = 64 * PIECE_BYTES
    plot = Plot(size, on_disk(tmp_path, size))
    for start in range(0, size, PIECE_BYTES):
        plot.write(start, filled(PIECE_BYTES).data)
    assert list(tmp_path.iterdir()) == []
    pieces, before = Pieces(np.frombuffer(plot.whole(), "<u8")), resident_bytes()
    assert sum(int(piece.sum(dtype=np.uint64) % 1000) >= 0 for piece in pieces) == 64
    assert np.array_equal(pieces[10:20], np.frombuffer(filled(PIECE_BYTES), "<u8")[10:20])
    assert resident_bytes() - before < 8 * PIECE_BYTES


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="nothing can be sealed")
def test_a_draft_is_sealed_where_it_was_written_and_not_while_somebody_could_still_write() -> None:
    writing = draft(SIZE, np.uint64)
    writing.values[:] = 7
    view = writing.values[5:]
    with pytest.raises(BufferError):
        writing.finish()
    del view
    writing = draft(SIZE, np.uint64)
    writing.values[:] = 7
    finished = writing.finish()
    stretch = origin(finished)
    assert stretch is not None and (finished == 7).all() and finished.dtype == np.uint64
    assert handed_over(os.dup(stretch.stored.descriptor), 8 * SIZE).size == 8 * SIZE
    with pytest.raises(PermissionError):
        stretch.stored.write(0, b"x")
    assert origin(draft(8, np.uint64).finish()) is None


def test_a_file_that_ends_before_it_should_is_an_error_and_no_endless_loop() -> None:
    stored = in_memory(8)
    with pytest.raises(ServiceError, match="ends at 8"):
        stored.read(4, 8)


def test_a_disk_without_room_says_so_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"space|large"):
        on_disk(tmp_path, 1 << 55)
    with pytest.raises(OSError, match="space"):
        spooled(tmp_path, 1 << 55)


def test_a_file_that_is_spooled_takes_what_is_written_and_is_whole_in_the_end(tmp_path: Path) -> None:
    stored = spooled(tmp_path, SIZE + 3)
    plot = Plot(SIZE, stored, 3)
    assert os.fstat(stored.descriptor).st_blocks == 0 and list(tmp_path.iterdir()) == []
    for start in range(0, SIZE, PIECE_BYTES):
        plot.write(start, filled()[start : start + PIECE_BYTES].data)
    assert bytes(plot.whole()) == filled().tobytes()
