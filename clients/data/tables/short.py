"""Short words of columns told apart without looking each up: by their bytes as one whole number, in a small table.

Several columns are told at once: on the few thousand cells of a batch a call of numpy's costs more than its work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sovfed.clients.data.tables.source import Cells

LETTERS: Final = 8  # bytes of a word at most
MOST: Final = 32  # words
BITS: Final = 12  # of a place in the table: 128 places a word
AT_ONCE: Final = 1 << 15  # cells: what is made of them stays in the processor's cache
LONG, FREE = np.uint64(2**64 - 1), np.uint64(2**64 - 2)  # no text's bytes in UTF-8
FACTORS: Final = tuple(np.uint64(0x9E3779B97F4A7C15 + 2 * step) for step in range(16))  # odd: one to one modulo 2^64
MASKS: Final = np.array([2 ** (8 * length) - 1 for length in range(LETTERS + 1)], np.uint64)


class Few(NamedTuple):
    """A column's few short words, and what each is stored as: NaN where it is at fault, or no value."""

    words: tuple[str, ...]
    values: npt.NDArray[np.float32]


class ShortWords:
    """The places of words in a list, given cells. Of each text all bytes count."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        keys = np.array([int.from_bytes(word.encode(), "little") for word in words], np.uint64)
        self._factor = next((factor for factor in FACTORS if len({*_places(keys, factor).tolist()}) == len(keys)), None)
        self._keys = np.full(1 << BITS, FREE)
        self._codes = np.zeros(1 << BITS, np.intp)
        if self._factor is not None:
            self._keys[_places(keys, self._factor)] = keys
            self._codes[_places(keys, self._factor)] = np.arange(len(keys))

    def places(self, cells: pa.StringArray) -> npt.NDArray[np.intp] | None:
        """Of each cell the place of its word, and the number of words for any other text.

        None where that cannot be told: if a cell is empty of a value, or holds a zero byte.
        """
        if self._factor is None or not len(cells) or cells.null_count or (keys := _keys(cells)) is None:
            return None
        places = _places(keys, self._factor)
        codes = self._codes.take(places)
        same = self._keys.take(places) == keys
        if not same.all():
            codes[~same] = len(self.words)
        return codes


class SharedWords:
    """What the cells of several columns of few words are stored as."""

    def __init__(self, columns: Mapping[str, Few]) -> None:
        self.columns = dict(columns)
        self._words = ShortWords(sorted({word for few in columns.values() for word in few.words}))
        places = {word: place for place, word in enumerate(self._words.words)}
        self._values = np.full((len(columns), len(places) + 1), np.nan, np.float32)
        for row, few in zip(self._values, columns.values(), strict=True):
            row[[places[word] for word in few.words]] = few.values

    def sound(self, cells: Mapping[str, Cells]) -> dict[str, npt.NDArray[np.float32]]:
        """The values [n] of those of the columns in which each cell has one."""
        names = [name for name in self.columns if types.is_string(cells[name].type) and not cells[name].null_count]
        if not names or not len(cells[names[0]]):
            return {}
        table = self._values[[name in names for name in self.columns]]
        first = np.arange(0, table.size, table.shape[1])[:, None]  # each column's place in the table
        values = np.empty((len(names), len(cells[names[0]])), np.float32)
        start = 0
        for batch in pa.table([cells[name] for name in names], names).to_batches(AT_ONCE // len(names) + 1):
            if (places := self._words.places(pa.concat_arrays(batch.columns))) is None:
                return {}
            rows = slice(start, start + batch.num_rows)
            values[:, rows] = table.take(places.reshape(len(names), -1) + first)
            start += batch.num_rows
        lacking = np.isnan(values.min(1))
        return {name: column for name, column, lacks in zip(names, values, lacking, strict=True) if not lacks}


def shared(columns: Mapping[str, Few]) -> list[SharedWords]:
    """All the columns in as few groups as may be, each with no more words than are told apart."""
    groups: list[dict[str, Few]] = []
    for name, few in sorted(columns.items(), key=lambda item: item[1].words):
        if not groups or not fits([*{word for column in [*groups[-1].values(), few] for word in column.words}]):
            groups.append({})
        groups[-1][name] = few
    return [SharedWords(group) for group in groups]


def fits(words: Sequence[str]) -> bool:
    """Whether all are short and few."""
    return len(words) <= MOST and all(len(word.encode()) <= LETTERS and "\0" not in word for word in words)


def _keys(cells: pa.StringArray) -> npt.NDArray[np.uint64] | None:
    """Each cell's bytes as a whole number, `LONG` of too many; None if one holds the byte that fills up the others."""
    _, offsets, content = cells.buffers()
    ends = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    lengths = ends[1:] - ends[:-1]
    text = memoryview(content or b"")[ends[0] : ends[-1]].tobytes()
    if b"\0" in text:
        return None
    padded = np.frombuffer(text + bytes(LETTERS), np.uint8)
    windows = np.ndarray((len(text) + 1,), "V8", padded, 0, (1,))  # at each byte, the eight from there on
    keys: npt.NDArray[np.uint64] = windows.take(ends[:-1] - np.intp(ends[0])).view("<u8")
    keys &= MASKS.take(lengths, mode="clip")
    if lengths.max() > LETTERS:
        keys[lengths > LETTERS] = LONG
    return keys


def _places(keys: npt.NDArray[np.uint64], factor: np.uint64) -> npt.NDArray[np.intp]:
    """Where in the table each key stands (multiplicative hashing: Knuth, TAOCP 3, 6.4)."""
    return ((keys * factor) >> np.uint64(64 - BITS)).view(np.intp)  # `take` copies places of any other kind
