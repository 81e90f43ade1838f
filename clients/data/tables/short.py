"""Short words of a column told apart without looking each up: by their bytes as one whole number, in a small table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

LETTERS: Final = 8  # bytes of a word at most
MOST: Final = 32  # words
BITS: Final = 12  # of a place in the table: 128 places a word
NOTHING: Final = np.uint64(2**64 - 1)  # no text's bytes in UTF-8
FACTORS: Final = tuple(np.uint64(0x9E3779B97F4A7C15 + 2 * step) for step in range(16))  # odd: one to one modulo 2^64
MASKS: Final = np.array([2 ** (8 * length) - 1 for length in range(LETTERS + 1)], np.uint64)


class ShortWords:
    """The places of words in a list, given a column's cells. Of each text all bytes count."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        keys = np.array([int.from_bytes(word.encode(), "little") for word in words], np.uint64)
        self._factor = next((factor for factor in FACTORS if len(np.unique(_places(keys, factor))) == len(keys)), None)
        self._keys = np.full(1 << BITS, NOTHING)
        self._codes = np.zeros(1 << BITS, np.intp)
        if self._factor is not None:
            self._keys[_places(keys, self._factor)] = keys
            self._codes[_places(keys, self._factor)] = np.arange(len(keys))

    def codes(self, cells: pa.StringArray) -> npt.NDArray[np.intp] | None:
        """Of each cell the place of its word; None if a cell is empty of a value or holds any other text."""
        if self._factor is None or cells.null_count or (keys := _keys(cells)) is None:
            return None
        places = _places(keys, self._factor)
        return self._codes.take(places) if (self._keys.take(places) == keys).all() else None


def fits(words: Sequence[str]) -> bool:
    """Whether all are short and few."""
    return len(words) <= MOST and all(len(word.encode()) <= LETTERS and "\0" not in word for word in words)


def _keys(cells: pa.StringArray) -> npt.NDArray[np.uint64] | None:
    """Each cell's bytes as a whole number; None if one is too long, or holds the byte that fills up the others."""
    _, offsets, content = cells.buffers()
    ends = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    lengths = ends[1:] - ends[:-1]
    if not len(cells) or lengths.max() > LETTERS:
        return None
    text = memoryview(content or b"")[ends[0] : ends[-1]].tobytes()
    if b"\0" in text:
        return None
    padded = np.frombuffer(text + bytes(LETTERS), np.uint8)
    windows = np.ndarray((len(text) + 1,), "V8", padded, 0, (1,))  # at each byte, the eight from there on
    keys: npt.NDArray[np.uint64] = windows.take(ends[:-1] - np.intp(ends[0])).view("<u8")
    keys &= MASKS.take(lengths, mode="clip")
    return keys


def _places(keys: npt.NDArray[np.uint64], factor: np.uint64) -> npt.NDArray[np.intp]:
    """Where in the table each key stands (multiplicative hashing: Knuth, TAOCP 3, 6.4)."""
    return ((keys * factor) >> np.uint64(64 - BITS)).view(np.intp)  # `take` copies places of any other kind
