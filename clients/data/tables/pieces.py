"""The plain pieces that a text table begins with, as batches of cells: what `plain.py` finds and reads in them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np

from sovfed.clients.data.tables import plain
from sovfed.clients.data.tables.source import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sovfed.clients.data.tables.cells import Cells
    from sovfed.clients.data.tables.dialect import Dialect
    from sovfed.clients.data.tables.report import Mask

PIECE: Final = 1 << 19  # bytes that are looked at together: a record must fit
MANY: Final = 8  # of a column one in so many is no short number: then Arrow is asked whether it can read all


class Pieces:
    """Reads a file until a piece is not plain. From byte `start` on, after `rows` rows, Arrow has to read it."""

    def __init__(self, path: Path, dialect: Dialect) -> None:
        self._path, self._dialect = path, dialect
        self.start = self.rows = 0

    def batches(self, wanted: Sequence[int], numeric: Sequence[int]) -> Iterator[Batch]:
        """The rows of the plain pieces. Raises OSError."""
        self.start = self.rows = 0
        if not plain.takes(self._dialect.encoding, self._dialect.separator):
            return
        buffer, kept = bytearray(PIECE + plain.PAD), 0
        with self._path.open("rb") as file:
            start = _skipped(file, self._dialect.skipped)
            while start:
                size = kept + file.readinto(memoryview(buffer)[kept:PIECE])
                if size < PIECE and size and buffer[size - 1] != plain.NEWLINE:  # the file's last line
                    buffer[size] = plain.NEWLINE
                    size += 1
                end = buffer.rfind(b"\n", 0, size) + 1
                piece = plain.split(buffer, end, self._dialect.separator, self._dialect.cells) if end else None
                batch = self._batch(piece, wanted, numeric) if piece else None
                if batch is None:
                    return
                yield batch
                start += end
                self.start, self.rows = start, self.rows + len(batch.lines)
                kept = size - end
                buffer[:kept] = buffer[end:size]

    def _batch(self, piece: plain.Piece, wanted: Sequence[int], numeric: Sequence[int]) -> Batch | None:
        """A piece's rows; None if Arrow reads most of its numbers faster, or a cell is no text."""
        words = [place for place in wanted if place not in numeric]
        texts = piece.texts(words, self._dialect.encoding) if words else []
        if texts is None:
            return None
        cells: dict[int, Cells] = dict(zip(words, texts, strict=True))
        values, taken = None, tuple(numeric)
        if taken:
            values, other = piece.numbers(numeric, self._dialect.decimal)
            if other is not None:
                partly = self._partly(piece, values, other, numeric)
                if partly is None:
                    return None
                cells |= partly
                all_plain = ~np.logical_or.reduce(other, axis=0)
                values, taken = values[:, all_plain], tuple(itertools.compress(numeric, all_plain.tolist()))
        first = self._dialect.skipped + 1 + self.rows
        lines = np.arange(first, first + len(piece), dtype=np.int64)
        return Batch([cells.get(place) for place in wanted], lines, values if taken else None, taken)

    def _partly(
        self, piece: plain.Piece, values: plain.Values, other: Mask, numeric: Sequence[int]
    ) -> dict[int, Cells] | None:
        """The columns where some are `other` than plain numbers; None as of `_batch`."""
        cells: dict[int, Cells] = {}
        encoding, long = self._dialect.encoding, 0
        for column, (place, count) in enumerate(zip(numeric, np.count_nonzero(other, axis=0).tolist(), strict=True)):
            if count * MANY > len(piece) and (texts := piece.texts([place], encoding)):
                numbers = plain.long_numbers(texts[0], self._dialect.decimal)
                if numbers is not None:
                    cells[place], long = numbers, long + 1
                    continue
            if count:
                partly = piece.partly(place, values[:, column], other[:, column], encoding)
                if partly is None:
                    return None
                cells[place] = partly
        return None if 2 * long > len(numeric) else cells


def _skipped(file: BinaryIO, lines: int) -> int:
    """Where in `file` the line after so many begins; 0 if lines end in another way than in a line feed."""
    content = b"".join(file.readline(PIECE) for _ in range(lines))
    plainly = content.endswith(b"\n") and content.count(b"\n") == lines
    return file.tell() if plainly and content.count(b"\r") == content.count(b"\r\n") else 0
