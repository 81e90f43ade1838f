"""Pieces of a text table whose cells stand plainly side by side, found and read by whole arrays instead of one by one.

What is read is what Arrow or `words.py` would read, to the bit, or it is not read here: a number has at most eight
characters, so digits over a power of ten, both exact, and one rounded division; a word at most eight bytes.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sovfed.clients.data.tables.short import LETTERS, MASKS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sovfed.clients.data.tables.report import Mask

    Values = npt.NDArray[np.float64]
    Places = npt.NDArray[np.int64]
    Keys = npt.NDArray[np.uint64]

ALL: Final = slice(None)
TOGETHER: Final = 1 << 14  # cells whose numbers are made at once: what that takes stays in the processor's cache
PAD: Final = 64  # zeros after a piece's bytes, so that eight can be taken from each place
NEWLINE, RETURN, QUOTE, MINUS, ZERO = b'\n\r"-0'
ENCODINGS: Final = frozenset({"utf-8", "utf-8-sig", "ascii", "cp1252", "iso8859-1", "iso8859-15"})  # ASCII is itself
NONE: Final = ("NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None", "-", ".", "?")  # as a number


def _bytes(code: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([code] * LETTERS), "little"))


ONE, EIGHT, NINE, _63, _64 = map(np.uint64, (1, 8, 9, 63, 64))
FIRST: Final = np.uint64(0xFF)
ZEROS, NO_DIGIT, OVER_NINE, HIGH = _bytes(ZERO), _bytes(0x10), _bytes(0x76), _bytes(0x80)
LAST: Final = np.uint64(1 << 56)
_NONE: Final = np.array([int.from_bytes(word.encode(), "little") for word in NONE], np.uint64)
_NOTHING: Final = pa.array(["", *NONE])
_STEPS: Final = tuple(  # each puts neighbours together: of one digit, of two, of four
    (np.uint64(1 + (power << shift)), np.uint64(shift), np.uint64(mask)) for power, shift, mask in (
        (10, 8, 0x00FF00FF00FF00FF), (100, 16, 0x0000FFFF0000FFFF), (10_000, 32, 0x00000000FFFFFFFF),
    )
)  # fmt: skip
_POWERS: Final = np.array([10.0 ** (8 - bits // 8) for bits in range(65)])  # by the bits before the mark; none: 64


class Numbers(NamedTuple):
    """Plain numbers of a piece [rows, columns], NaN where there is none; where a cell is something else, if any is."""

    values: Values
    other: Mask | None


class PartlyNumbers(NamedTuple):
    """A column of numbers but for the cells in `rows`, which have `texts`."""

    values: Values
    rows: Places
    texts: list[str]


@dataclass(frozen=True, eq=False)
class ShortCells:
    """A column's cells as whole numbers of their bytes, for all are short."""

    keys: Keys
    lengths: Places

    def text(self) -> pa.Array:
        """The same as Arrow has it."""
        used = np.arange(LETTERS) < self.lengths[:, None]
        return _strings(self.keys.view(np.uint8).reshape(-1, LETTERS)[used], self.lengths)


def takes(encoding: str, separator: str) -> bool:
    """Whether tables in this encoding can be read here: each byte below 128 is its character."""
    return codecs.lookup(encoding).name in ENCODINGS and separator.isascii() and separator not in '\r\n"'


class Piece:
    """The cells of whole rows [rows, cells]: where each starts and ends."""

    def __init__(self, content: npt.NDArray[np.uint8], starts: Places, ends: Places, *, quoted: bool) -> None:
        self._content, self._starts, self._ends, self._quoted = content, starts, ends, quoted
        self._words = content[: len(content) // LETTERS * LETTERS].view("<u8")

    def __len__(self) -> int:
        return len(self._starts)

    def numbers(self, columns: Sequence[int], decimal: str) -> Numbers:
        """The cells of `columns` as numbers with `decimal` as their mark."""
        values, other = np.empty((len(self), len(columns))), None
        step = max(1, TOGETHER // len(columns))
        for first in range(0, len(self), step):
            rows = slice(first, first + step)
            values[rows], wrong = self._numbers(columns, decimal, rows)
            if wrong is not None:
                other = np.zeros(values.shape, bool) if other is None else other
                other[rows] = wrong
        return Numbers(values, other)

    def _numbers(self, columns: Sequence[int], decimal: str, rows: slice) -> Numbers:
        keys, starts, lengths = self._keys(columns, rows)
        values, wrong = _numbers(keys, lengths, ord(decimal))
        if not lengths.min():
            values[lengths == 0] = np.nan
        if wrong is None:
            return Numbers(values, None)
        wrong &= lengths > 0
        row, column = np.nonzero(wrong)
        chosen = lengths[row, column]
        keys = self._eight(starts[row, column]) & MASKS[np.minimum(chosen, LETTERS)]
        none = (chosen <= LETTERS) & np.isin(keys, _NONE)
        values[row[none], column[none]] = np.nan
        wrong[row[none], column[none]] = False
        return Numbers(values, wrong if wrong.any() else None)

    def partly(self, column: int, values: Values, other: Mask, encoding: str) -> PartlyNumbers | None:
        """The cells of `column`, of which `other` are no plain numbers; None if one of them is no text."""
        rows = np.flatnonzero(other)
        cells = zip(self._starts[rows, column].tolist(), self._ends[rows, column].tolist(), strict=True)
        try:
            texts = [self._content[start:end].tobytes().decode(encoding) for start, end in cells]
        except UnicodeDecodeError:
            return None
        texts = [text[1:-1] if text.startswith('"') else text for text in texts] if self._quoted else texts
        return PartlyNumbers(np.ascontiguousarray(values), rows, texts)

    def texts(self, columns: Sequence[int], encoding: str) -> list[pa.Array | ShortCells] | None:
        """The cells of each of `columns`; None if one is no text in `encoding`."""
        keys, starts, lengths = self._keys(columns, by_column=True)
        keys &= MASKS.take(lengths, mode="clip")
        plain = not int(np.bitwise_or.reduce(keys, axis=None)) & int(HIGH)
        cells: list[pa.Array | ShortCells] = []
        for index, most in enumerate(lengths.max(1).tolist()):
            if most <= LETTERS and plain:
                cells.append(ShortCells(keys[index], lengths[index]))
                continue
            text = _decoded(self._bytes(starts[index], lengths[index]), lengths[index], encoding)
            if text is None:
                return None
            cells.append(text)
        return cells

    def _keys(
        self, columns: Sequence[int], rows: slice = ALL, *, by_column: bool = False
    ) -> tuple[Keys, Places, Places]:
        """The first eight bytes of the cells of `columns`, where they start, and their lengths: without quotes."""
        together = len(columns) == columns[-1] - columns[0] + 1 and list(columns) == sorted(columns)
        chosen = slice(columns[0], columns[-1] + 1) if together else list(columns)
        starts, ends = self._starts[rows, chosen], self._ends[rows, chosen]
        if by_column:
            starts, ends = starts.T, ends.T
        starts = np.ascontiguousarray(starts)
        lengths = np.subtract(ends, starts, order="C")
        keys = self._eight(starts)
        if self._quoted and (quoted := (keys & FIRST) == QUOTE).any():
            starts = starts + quoted
            lengths -= 2 * quoted
            keys = self._eight(starts)
        return keys, starts, lengths

    def _eight(self, starts: Places) -> Keys:
        """The eight bytes from each place on: out of two words, since unaligned ones are slow to gather."""
        place = starts >> 3
        keys = self._words.take(place, mode="clip")
        following = self._words[1:].take(place, mode="clip")
        bits = (starts & 7).view(np.uint64)
        bits <<= np.uint64(3)
        keys >>= bits
        np.subtract(_64, bits, out=bits)
        following <<= bits  # by 64 bits: 0
        keys |= following
        return keys

    def _bytes(self, starts: Places, lengths: Places) -> npt.NDArray[np.uint8]:
        """The bytes of cells, one after the other."""
        length = int(lengths[0])
        if length and (lengths == length).all():
            each = np.ndarray((len(self._content) - length,), f"V{length}", self._content, 0, (1,))
            return np.frombuffer(each[starts].tobytes(), np.uint8)
        ends = np.cumsum(lengths)
        chosen: npt.NDArray[np.uint8] = self._content[
            np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
        ]
        return chosen


def split(buffer: bytearray, size: int, separator: str, cells: int) -> Piece | None:
    """The rows in the first `size` bytes, which end in a line break; `buffer` has `PAD` more.

    None if a row has another number of cells, or a quote stands where it may mean something else.
    """
    content = np.frombuffer(buffer, np.uint8)
    used = content[:size]
    breaks = used == NEWLINE
    parting = used == ord(separator)
    parting |= breaks
    if buffer.find(b"\0", 0, size) >= 0:
        return None
    if quoted := buffer.find(b'"', 0, size) >= 0:
        unquoted = _unquoted(used, parting, breaks)
        if unquoted is None:
            return None
        parting = unquoted
    ends = np.flatnonzero(parting)
    if len(ends) % cells or not breaks[ends[cells - 1 :: cells]].all() or np.count_nonzero(breaks) * cells != len(ends):
        return None
    starts = np.empty_like(ends)
    starts[0] = 0
    np.add(ends[:-1], 1, out=starts[1:])
    last = ends[cells - 1 :: cells]
    if buffer.find(b"\r", 0, size) >= 0:
        if buffer.count(b"\r", 0, size) != len(last) or not (content.take(last - 1, mode="clip") == RETURN).all():
            return None
        last -= 1
    return Piece(content, starts.reshape(-1, cells), ends.reshape(-1, cells), quoted=quoted)


def _unquoted(used: npt.NDArray[np.uint8], parting: Mask, breaks: Mask) -> Mask | None:
    """`parting` without what stands within quotes; None unless each pair stands around a whole cell of a line."""
    quotes, parts = _packed(used == QUOTE), _packed(parting)
    inside = quotes.copy()  # from each opening quote to before its closing one
    for shift in (1, 2, 4, 8, 16, 32):
        inside ^= inside << np.uint64(shift)
    odd = np.bitwise_xor.accumulate(inside >> _63)
    inside[1:] ^= np.negative(odd[:-1])
    ends = parts | _packed(used == RETURN)
    after, before = parts << ONE, ends >> ONE
    after[0] |= ONE
    after[1:] |= parts[:-1] >> _63
    before[:-1] |= ends[1:] << _63
    wrong = (quotes & inside & ~after) | (quotes & ~inside & ~before) | (inside & _packed(breaks))
    if wrong.any():
        return None
    parts &= ~inside
    return np.unpackbits(parts.view(np.uint8), count=len(used), bitorder="little").view(bool)


def _packed(bits: Mask) -> Keys:
    """64 of the bits in each word, the first the lowest."""
    packed = np.packbits(bits, bitorder="little")
    words = np.zeros(-(-len(packed) // LETTERS), np.uint64)
    words.view(np.uint8)[: len(packed)] = packed
    return words


def _numbers(keys: Keys, lengths: Places, mark: int) -> tuple[Values, Mask | None]:
    """The numbers in cells of which `keys` are the first eight bytes, and where there is none that is plain.

    All digits of a cell are handled as one whole number of 64 bits (Lemire: Number parsing at a gigabyte a second).
    """
    digits = np.bitwise_xor(keys, ZEROS, out=keys)
    negative = (digits & FIRST) == np.uint64(MINUS ^ ZERO)
    signed = bool(negative.any())
    if signed:
        digits[negative] &= ~FIRST
    room = np.subtract(LETTERS, lengths)
    room *= 8
    digits <<= room.view(np.uint64)  # the last character last, digits 0 before the first; by 64 bits or more: all 0
    at = digits & NO_DIGIT
    work = np.negative(at)
    at &= work
    at >>= np.uint64(4)  # 1 in the byte of the first that is no digit
    np.multiply(at, np.uint64(mark ^ ZERO), out=work)
    digits ^= work  # 0, if it was the mark
    np.multiply(at, NINE, out=work)
    work += OVER_NINE
    work += digits  # over 127 in a byte that is over nine, or not 0 in the mark's place
    work |= digits
    wrong: Mask | None = None
    if (
        int(np.bitwise_or.reduce(work, axis=None)) & int(HIGH) or int(np.bitwise_or.reduce(at, axis=None)) & int(LAST)
        or lengths.max() > LETTERS or (signed and (lengths[negative] == 1).any())
    ):  # fmt: skip
        wrong = ((work & HIGH) != 0) | (at == LAST) | (lengths > LETTERS) | (negative & (lengths == 1))
    at -= ONE  # all bits before the mark
    np.bitwise_and(digits, at, out=work)
    digits ^= work
    digits >>= EIGHT
    digits |= work  # the mark's place is taken by what follows it, so a 0 is at the end
    for factor, shift, mask in _STEPS:
        digits *= factor
        digits >>= shift
        digits &= mask
    values = digits.view(np.int64).astype(np.float64)
    values /= _POWERS.take(np.bitwise_count(at), mode="clip")
    if signed:
        np.negative(values, out=values, where=negative)
    return values, wrong


def long_numbers(cells: pa.Array | ShortCells, mark: str) -> pa.Array | None:
    """The cells as Arrow reads numbers with that mark, if it reads all."""
    text = cells.text() if isinstance(cells, ShortCells) else cells
    if mark != ".":
        if pc.any(pc.match_substring(text, ".")).as_py():
            return None
        text = pc.replace_substring(text, mark, ".")
    try:
        return pc.cast(pc.if_else(pc.is_in(text, _NOTHING), pa.scalar(None, pa.string()), text), pa.float64())
    except pa.ArrowInvalid:
        return None


def _decoded(content: npt.NDArray[np.uint8], lengths: Places, encoding: str) -> pa.Array | None:
    raw = content.tobytes()
    if raw.isascii():
        return _strings(content, lengths)
    if encoding.startswith("utf-8"):
        text = _strings(content, lengths)
        try:
            text.validate(full=True)
        except pa.ArrowInvalid:
            return None
        return text
    ends = np.cumsum(lengths)
    try:
        return pa.array(
            [raw[end - length : end].decode(encoding) for end, length in zip(ends, lengths, strict=True)], pa.string()
        )
    except UnicodeDecodeError:
        return None


def _strings(content: npt.NDArray[np.uint8], lengths: Places) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.StringArray.from_buffers(len(lengths), pa.py_buffer(offsets), pa.py_buffer(content))
