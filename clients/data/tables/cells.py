"""A batch of a column's cells, as Arrow holds them, turned into the values that a schema stores.

Text is read by `words.py`, each distinct text once; what Arrow holds as numbers, booleans or dates stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from sovfed.clients.data.tables import short, words
from sovfed.clients.data.tables.report import COLUMNS
from sovfed.clients.data.tables.short import Few
from sovfed.clients.data.tables.units import Conversion
from sovfed.clients.data.tables.words import Rules, Words
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import REFUSE
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sovfed.clients.data.tables.report import Mask
    from sovfed.federation.tasks.columns import Column

    Read = Callable[[str], tuple[float, str]]

KEPT: Final = 1 << 15  # texts of a column whose meaning is kept for the batches that follow
KEPT_LETTERS: Final = 64  # of such a text
FIRST_DAY, LAST_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31
_PLAIN: Final = {  # by the decimal mark: numbers that the rules read as Arrow does
    mark: rf"^-?[0-9]{{1,15}}(?:[{mark}][0-9]{{1,15}})?$" for mark in (".", ",")
}
REPLACED: Final = "; if that is not meant: columns: {COLUMN: {values: {NUMBER: WORD}}} in the file of data.mapping"
_SEVERAL: Final = r"[^!-~]"  # a name with anything but ASCII's printed characters
_PERSONS: Final = pa.array(sorted(words.NOBODY))


class Decoded(NamedTuple):
    """Values [n, …] as they are stored, where none is given [n], and where which fault is [n]."""

    values: npt.NDArray[Any]
    absent: Mask
    faults: list[tuple[str, Mask]]

    def at(self, codes: npt.NDArray[np.integer[Any]]) -> Decoded:
        """Of each row what is decoded at its code."""
        absent = self.absent[codes] if self.absent.any() else np.zeros(len(codes), bool)
        return Decoded(self.values.take(codes, 0), absent, [(kind, mask[codes]) for kind, mask in self.faults])


class _Known(dict[str, tuple[float, str]]):
    """What texts mean: each is read when it first comes, and kept if it is short and there is room."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, text: str) -> tuple[float, str]:
        meaning = self._read(text)
        if len(self) < KEPT and len(text) <= KEPT_LETTERS:
            self[text] = meaning
        return meaning


class Decoder:
    """Reads the cells of one column of a schema."""

    def __init__(
        self, column: Column, rules: Rules, own: Mapping[str, str] | None = None, unit: Conversion | None = None
    ) -> None:
        """`own` gives the column's word for an institution's, as `fold` writes that; `unit` its unit for theirs."""
        self.column, self._own = column, own or {}
        self._unit = unit if unit is not None and unit.changes else None
        self._words = Words(column, rules) if column.kind in ("boolean", "category") else None
        self._known = _Known(
            _translated(self._words.code, self._own)
            if self._words is not None
            else rules.day
            if column.kind == "date"
            else rules.number
        )
        self._rules = rules
        self._dtype = column.dtype
        self._whole = column.kind in ("image", "tokens")
        self.worded = self._words is not None and not column.shape
        self.few: Few | None = None  # a column's few words so far, and what each is stored as

    def learn(self, texts: Sequence[str]) -> None:
        """Keep what a column's texts are stored as, as long as they are short and few."""
        if not self.worded:
            return
        together = sorted({*texts, *(self.few.words if self.few else ())})
        self.few = None
        if short.fits(together):
            decoded = self._of_texts(together)
            unsound = np.logical_or.reduce([decoded.absent, *(mask for _, mask in decoded.faults)])
            self.few = Few(tuple(together), np.where(unsound, np.nan, decoded.values).astype(np.float32))

    @property
    def note(self) -> str:
        """Which numbers were taken for which categories; "" for none."""
        taken = {} if self._words is None else self._words.by_number
        told = ", ".join(f"{number} as '{visible(word)}'" for number, word in sorted(taken.items())[:COLUMNS])
        return f"column '{visible(self.column.name)}': {told}{REPLACED}" if told else ""

    def decode(self, cells: list[pa.Array]) -> Decoded:
        """The column's values in a batch; `cells` has one array, or as many as the column has values."""
        if self.column.kind == "text":
            return self._text(cells[0])
        if self.column.shape and len(cells) == 1 and _is_list(cells[0].type):
            cells = _spread(cells[0], self.column.size)
        if len(cells) == 1 and not self.column.shape:
            return self._decoded(cells[0])
        if len(cells) != self.column.size:
            raise DataError(self._one_cell())
        parts = [self._decoded(cell) for cell in cells]
        values = np.stack([column.values for column in parts], 1).reshape(-1, *self.column.shape)
        kinds = {kind for column in parts for kind, _ in column.faults}
        faults = [
            (kind, np.logical_or.reduce([mask for column in parts for name, mask in column.faults if name == kind]))
            for kind in sorted(kinds)
        ]
        return Decoded(values, np.logical_and.reduce([column.absent for column in parts]), faults)

    def _one_cell(self) -> str:
        """What to say of a single cell where there should be as many values as the column's shape has."""
        name, size = visible(self.column.name), self.column.size
        if self.column.kind == "image":
            return f"column '{name}' holds no pixels; if it names files, add data.source=images and data.path=FOLDER"
        return (
            f"column '{name}' holds one value a row, expected {size}: in {name}_0, {name}_1 …, or as a list in Parquet"
        )

    def _decoded(self, cells: pa.Array) -> Decoded:
        if types.is_dictionary(cells.type):
            cells = cells.cast(cells.type.value_type)
        kind = self.column.kind
        if kind in ("boolean", "category"):
            plain = kind == "boolean" and types.is_boolean(cells.type) and not self._own
            return self._checked(*_numbers(cells)) if plain else self._distinct(as_text(cells))
        if kind == "date":
            days = self._days(cells)
            return self._distinct(as_text(cells)) if days is None else self._checked(*_numbers(days.view(pa.int32())))
        return self._written(cells) if is_text(cells.type) else self._checked(*self._present(*_numbers(cells)))

    def _days(self, cells: pa.Array) -> pa.Array | None:
        """The days since 1970-01-01, as long as each cell is a date or a text of the plainest form, as 2026-01-31."""
        if types.is_date(cells.type) or types.is_timestamp(cells.type):
            return pc.cast(cells, pa.date32(), safe=False)
        if not self._rules.plain_days or not is_text(cells.type):
            return None
        try:
            days = pc.cast(cells, pa.date32())
        except pa.ArrowInvalid:
            return None
        ends = pc.min_max(days.view(pa.int32())).as_py()
        return days if (ends["min"] or 0) >= FIRST_DAY and (ends["max"] or 0) <= LAST_DAY else None

    def _distinct(self, cells: pa.Array) -> Decoded:
        """Each distinct text read once."""
        cells = cells if types.is_string(cells.type) else cells.cast(pa.string())
        coded = pc.dictionary_encode(pc.fill_null(cells, "") if cells.null_count else cells)
        texts = coded.dictionary.to_pylist()
        self.learn(texts)
        return self._of_texts(texts).at(coded.indices.to_numpy(zero_copy_only=False))

    def _of_texts(self, texts: list[str]) -> Decoded:
        meanings = [self._known[text] for text in texts]
        values = np.array([np.nan if fault else value for value, fault in meanings], np.float64)
        kinds = sorted({fault for _, fault in meanings} - {"", words.MISSING})
        faults = [(kind, np.array([fault == kind for _, fault in meanings])) for kind in kinds]
        return self._checked(values, faults)

    def _written(self, cells: pa.Array) -> Decoded:
        """Numbers as text: the plain ones, mostly all, are cast together; each other text is read by the rules."""
        cells = pc.fill_null(cells.cast(pa.string()), "")
        plain = pc.match_substring_regex(cells, _PLAIN[self._rules.decimal])
        written = pc.if_else(plain, pc.replace_substring(cells, ",", "."), pa.scalar(None, pa.string()))
        values = self._present(np.array(pc.cast(written, pa.float64())), [])[0]
        rows = np.flatnonzero(~plain.to_numpy(zero_copy_only=False))
        meanings = [self._known[text] for text in cells.take(pa.array(rows)).to_pylist()]
        values[rows] = [np.nan if fault else value for value, fault in meanings]
        faults = []
        for kind in sorted({fault for _, fault in meanings} - {"", words.MISSING}):
            mask = np.zeros(len(values), bool)
            mask[rows] = [fault == kind for _, fault in meanings]
            faults.append((kind, mask))
        return self._checked(values, faults)

    def _present(
        self, values: npt.NDArray[np.float64], faults: list[tuple[str, Mask]]
    ) -> tuple[npt.NDArray[np.float64], list[tuple[str, Mask]]]:
        """Numbers without those that the settings name as a word for a missing value."""
        if not len(self._rules.absent_numbers):
            return values, faults
        with np.errstate(over="ignore"):
            absent = np.isin(values.astype(np.float32), self._rules.absent_numbers)
        return np.where(absent, np.nan, values), faults

    def _checked(self, values: npt.NDArray[np.float64], faults: list[tuple[str, Mask]]) -> Decoded:
        low, high = self.column.bounds
        values = values if self._unit is None else self._unit.of(values)
        with np.errstate(over="ignore"):  # 1E100 is outside of any bounds
            stored = values if self.column.kind == "category" else values.astype(np.float32, copy=False)
        inside = (stored >= low) & (stored <= high)
        if inside.all() and not self._whole:
            return Decoded(values.astype(self._dtype, copy=False), ~inside, faults)
        absent = np.isnan(values)
        for _, mask in faults:
            absent &= ~mask
        wrong = ~inside & ~np.isnan(values)
        if self._whole:
            wrong |= ~np.isnan(values) & (values != np.rint(values))
        faults = [*faults, (words.OUTSIDE, wrong)] if wrong.any() else faults
        if self.column.missing == REFUSE and absent.any():
            faults = [*faults, (words.MISSING, absent)]
        return Decoded(self._stored(values), absent, faults)

    def _stored(self, values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
        if self._dtype.kind == "f":
            with np.errstate(over="ignore"):
                return values.astype(self._dtype, copy=False)
        limits = np.iinfo(self._dtype)
        clipped: npt.NDArray[Any] = np.clip(
            np.where(np.isnan(values), -1 if limits.min < 0 else 0, values), limits.min, limits.max
        )
        return clipped.astype(self._dtype)

    def _text(self, cells: pa.Array) -> Decoded:
        """The first bytes of each text, each plus one, then zeros."""
        length = self.column.size
        values = np.zeros((len(cells), length), self._dtype)
        absent = np.zeros(len(cells), bool)
        for row, text in enumerate(as_text(cells).to_pylist()):
            absent[row] = not text
            content = np.frombuffer((text or "")[:length].encode()[:length], np.uint8)
            values[row, : len(content)] = content.astype(self._dtype) + 1
        faults = [(words.MISSING, absent)] if absent.any() else []
        return Decoded(values.reshape(-1, *self.column.shape), absent, faults)


def _translated(read: Read, own: Mapping[str, str]) -> Read:
    """`read`, with the words that are an institution's `own` put into the task's."""
    return (lambda text: read(own.get(words.fold(text), text))) if own else read


def is_text(kind: pa.DataType) -> bool:
    """Whether cells of this type are text."""
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def as_text(cells: pa.Array) -> pa.Array:
    """The cells as text: whole numbers without a decimal point, as an identifier or a class number is written."""
    if types.is_dictionary(cells.type):
        cells = cells.cast(cells.type.value_type)
    if is_text(cells.type):
        return cells
    if types.is_floating(cells.type):
        values = _numbers(cells)[0]
        return pa.array(
            [
                None if np.isnan(value) else f"{value:.0f}" if value == np.rint(value) else repr(value)
                for value in values.tolist()
            ],
            pa.string(),
        )
    if types.is_nested(cells.type) or types.is_binary(cells.type) or types.is_large_binary(cells.type):
        return pa.nulls(len(cells), pa.string())
    return cells.cast(pa.string())


def names_of(cells: pa.Array) -> tuple[pa.Array, Mask]:
    """The persons' names as they are compared, and where there is none."""
    text = as_text(cells).cast(pa.string())
    odd = pc.match_substring_regex(text, _SEVERAL)
    if pc.any(odd).as_py():
        text = pa.array([None if name is None else words.person_name(name) for name in text.to_pylist()], pa.string())
    text = pc.fill_null(text, "")
    nobody = pc.is_in(pc.utf8_lower(text), _PERSONS)
    return text, nobody.to_numpy(zero_copy_only=False)


def _numbers(cells: pa.Array) -> tuple[npt.NDArray[Any], list[tuple[str, Mask]]]:
    """What Arrow holds as numbers; anything else is none."""
    if types.is_boolean(cells.type):
        cells = cells.cast(pa.uint8())
    if types.is_null(cells.type):
        return np.full(len(cells), np.nan), []
    if not (types.is_integer(cells.type) or types.is_floating(cells.type) or types.is_decimal(cells.type)):
        return np.full(len(cells), np.nan), [(words.NUMBER, cells.is_valid().to_numpy(zero_copy_only=False))]
    if not types.is_floating(cells.type):
        cells = cells.cast(pa.float64(), safe=False)
    return cells.to_numpy(zero_copy_only=False), []


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _spread(cells: pa.Array, size: int) -> list[pa.Array]:
    """A column of lists as `size` columns; a list of another length has no value anywhere."""
    fits = pc.equal(pc.list_value_length(cells), size)
    fitting = pc.if_else(pc.fill_null(fits, False), cells, pa.scalar(None, cells.type))
    flat = pc.list_flatten(fitting)
    where = np.full(len(cells), -1)
    full = fitting.is_valid().to_numpy(zero_copy_only=False)
    where[full] = np.arange(int(full.sum())) * size
    return [flat.take(pa.array(np.where(where < 0, 0, where + position), mask=where < 0)) for position in range(size)]
