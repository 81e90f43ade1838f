"""Reading tables: from any source of rows to what a schema stores, by declared rules and in little memory.

Nothing that happens to one row depends on another one, but for the refusal of a whole table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import types

from sovfed.clients.data.tables import words
from sovfed.clients.data.tables.cells import Decoded, Decoder, as_text, names_of
from sovfed.clients.data.tables.grown import Grown
from sovfed.clients.data.tables.header import Places, locate
from sovfed.clients.data.tables.mapping import renamed
from sovfed.clients.data.tables.report import Report
from sovfed.clients.data.tables.short import SharedWords, shared
from sovfed.clients.data.tables.source import Batch, Restart, Source, no_rows, not_private, whole
from sovfed.clients.data.tables.values import lists_of
from sovfed.clients.data.tables.words import Rules
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import CODES, NUMBERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from sovfed.clients.data.tables.mapping import OwnColumn
    from sovfed.clients.data.tables.report import Lines, Mask
    from sovfed.clients.data.tables.source import Cells
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks.columns import Column, Schema, Table

PLAIN: Final = ("number", "image", "tokens")  # kinds of columns whose cells are numbers
FIRST: Final = 256  # rows that a column's few words are first looked for in
SKIP: Final = "; --skip-bad predicts for the others"
ATTEMPTS: Final = 8  # at reading a file whose way of writing is found out on the way


@dataclass(frozen=True, repr=False, eq=False)
class TableRead:
    """What was read: a table as the schema stores it, the person of each row (None: no column names them), a report."""

    table: Table
    persons: pa.ChunkedArray | None
    files: Mapping[str, list[str]]  # of columns of images the files' names
    places: Places
    report: Report
    lines: Lines | None = None  # of each row its line, where rows are kept or predicted
    not_private: str = ""  # why no private run may use it

    def __len__(self) -> int:
        return self.report.used


@dataclass
class _Pass:
    """One way through the rows."""

    grown: Grown
    report: Report
    persons: list[pa.Array] = field(default_factory=list)
    files: dict[str, list[str]] = field(default_factory=dict)
    lines: list[Lines] = field(default_factory=list)


def read_table(
    schema: Schema, source: Source, config: DataConfig, *,
    targets: bool = True, files: bool = False, keep: bool = False, own: Mapping[str, OwnColumn] | None = None,
) -> TableRead:  # fmt: skip
    """Read `source` as `config` says. Raises DataError unless its rows fit `schema`, but for the share that may not.

    Without `targets` what is learnt need not be there. With `files` a column of images holds files' names, which are
    given back. With `keep` no row is refused or left out, whatever is wrong with it: for looking at a table.
    """
    own = own or {}
    places = locate(schema, source.header, config, source.where, targets=targets, files=files, renamed=renamed(own))
    rules = Rules.of(config, source.decimal, either_day=not targets)
    numbered = keep or files or not targets
    reader = _Reader(schema, source, config.site, rules, places, own, keep=keep, lines=numbered, files=files)
    report = Report(source.where)
    for _ in range(ATTEMPTS):
        try:
            result = reader.run(report)
            break
        except Restart:
            no_rows(report)
    else:
        raise DataError(f"{source.where}: cannot be read")
    table = result.grown.done()
    pa.default_memory_pool().release_unused()
    report.used = result.grown.count
    report.notes += filter(None, reader.notes())
    if not keep:
        refuse(report, schema, config, source.word, "" if targets else SKIP)
    persons = None if places.person is None else pa.chunked_array(result.persons, pa.string())
    lines = np.concatenate([*result.lines, np.zeros(0, np.int64)]) if reader.lines else None
    return TableRead(table, persons, result.files, places, report, lines, not_private(places, source))


def refuse(report: Report, schema: Schema, config: DataConfig, word: str = "line", advice: str = "") -> None:
    """Raise DataError if rows are at fault and may not be, or are too many; `advice` is of use where they may be."""
    if not report.faults:
        return
    faults = report.told({column.name: column for column in schema.columns}, word)
    coded = any(kind == words.CODED for _, kind in report.faults)
    if config.bad_rows == "refuse" or coded:
        more = "" if coded else advice
        raise DataError(f"{report.where}: {report.bad} of {report.rows} rows cannot be used: {faults}{more}")
    if report.bad > config.max_bad_share * report.rows:
        raise DataError(
            f"{report.where}: {report.bad} of {report.rows} rows cannot be used, more than data.max_bad_share "
            f"{config.max_bad_share:g} of them: {faults}{advice}"
        )


class _Numbers(NamedTuple):
    """Plain numbers of a batch, in blocks of rows [n, columns], and which columns of `NUMBERS` they are."""

    blocks: list[npt.NDArray[np.float32]]
    columns: list[int]

    def store(self, stored: npt.NDArray[np.float32], kept: Mask | None) -> None:
        """Copy them all; those that are not sound are written over with what they were decoded to."""
        together = self.columns[-1] - self.columns[0] + 1 == len(self.columns)
        columns = slice(self.columns[0], self.columns[-1] + 1) if together else self.columns
        first = start = 0
        for block in self.blocks:
            values = block if kept is None else block[kept[first : first + len(block)]]
            stored[start : start + len(values), columns] = values
            first, start = first + len(block), start + len(values)


class _Reader:
    """Takes batches in turn, and keeps of each what the schema stores."""

    def __init__(
        self, schema: Schema, source: Source, site: str, rules: Rules, places: Places, own: Mapping[str, OwnColumn],
        *, keep: bool, lines: bool, files: bool,
    ) -> None:  # fmt: skip
        self.schema, self.source, self.places = schema, source, places
        self.keep, self.lines = keep, lines
        self._site = site if places.site is not None else None
        self._wanted = places.wanted
        self._columns = [column for column in schema.columns if column.name in places.columns]
        self._files = {column.name for column in self._columns if files and column.kind == "image"}
        spelled = getattr(source, "spells_lists", False)
        self._spelled = {
            column.name for column in self._columns
            if spelled and column.shape and column.kind in PLAIN and len(places.columns[column.name]) == 1
        }  # fmt: skip
        self._decoders = {
            column.name: Decoder(column, rules, told.folded, told)
            if (told := own.get(column.name))
            else Decoder(column, rules)
            for column in self._columns
        }
        self._worded = [name for name, decoder in self._decoders.items() if decoder.worded]
        self._shared: list[SharedWords] = []  # of `_worded`, those whose words are known
        self._numbers = {column.name: position for position, column in enumerate(schema.numbers)}
        self._codes = {column.name: position for position, column in enumerate(schema.codes)}
        self._absent = rules.absent
        self._odd = len(rules.absent_numbers) > 0  # numbers that are none, so that bounds alone do not tell
        self._plain = [
            (position, places.columns[column.name][0], column.name) for position, column in enumerate(schema.numbers)
            if column.kind == "number" and not (column.name in own and own[column.name].changes)
        ]  # fmt: skip
        self._bounds = np.array([schema.numbers[position].bounds for position, _, _ in self._plain]).reshape(-1, 2)

    def notes(self) -> list[str]:
        """How each column was read, where that is not plain."""
        return [decoder.note for decoder in self._decoders.values()]

    def run(self, report: Report) -> _Pass:
        stored = {
            name: layout for name, layout in self.schema.stored().items()
            if name in (NUMBERS, CODES) or (name in self.places.columns and name not in self._files)
        }  # fmt: skip
        state = _Pass(
            Grown(stored, getattr(self.source, "expected", 0)), report, files={name: [] for name in self._files}
        )
        plain = [column for column in self._columns if column.kind in PLAIN]
        numeric = [
            position
            for column in plain
            if column.name not in self._files and column.name not in self._spelled
            for position in self.places.columns[column.name]
        ]
        names = {self.places.person, self.places.site}  # which are text, whatever else they are
        for batch in self.source.batches(self._wanted, sorted(set(numeric) - names), report):
            self._take(batch, state)
            del batch  # before the next one is made
        return state

    def _take(self, batch: Batch, state: _Pass) -> None:
        """Add a batch's rows, but for those of other sites, those that are empty, and those at fault."""
        cells = dict(zip(self._wanted, batch.cells, strict=True))
        chosen = np.ones(len(batch.lines), bool)
        if self._site is not None and self.places.site is not None:
            names, _ = names_of(whole(cells[self.places.site]))
            chosen = np.asarray(names.to_numpy(zero_copy_only=False) == words.person_name(self._site), bool)
        numbers, sound = self._sound(cells, len(batch.lines))
        told = self._told(cells)
        sound |= set(told)
        decoded = {column.name: self._decoded(column, cells) for column in self._columns if column.name not in sound}
        self._share()
        empty = (
            ~chosen
            if sound or not decoded
            else np.logical_and.reduce([decoded_column.absent for decoded_column in decoded.values()])
        )
        persons = None
        if self.places.person is not None:
            persons, nobody = names_of(whole(cells[self.places.person]))
            empty &= nobody
        state.report.empty += int((chosen & empty).sum())
        chosen &= ~empty
        state.report.rows += int(chosen.sum())
        bad = self._faults(decoded, chosen, batch.lines, state.report)
        if persons is not None and (missing := nobody & chosen).any():
            state.report.fault("", words.PERSON, batch.lines[missing])
            bad |= missing
        state.report.bad += int(bad.sum())
        kept = chosen if self.keep else chosen & ~bad
        self._store(decoded, numbers, told, kept, persons, batch.lines, state)

    def _sound(self, cells: Mapping[int, Cells], count: int) -> tuple[_Numbers, set[str]]:
        """The plain numbers of a batch, and the names of those columns that are all within their bounds."""
        plain = [] if self._odd or not count else [
            index for index, (_, cell, _) in enumerate(self._plain) if types.is_floating(cells[cell].type)
        ]  # fmt: skip
        if not plain:
            return _Numbers([], []), set()
        table = pa.Table.from_arrays([cells[self._plain[index][1]] for index in plain], list(map(str, plain)))
        low, high = self._bounds[plain].T
        blocks, sound = [], np.ones(len(plain), bool)
        for batch in table.to_batches():
            numbers = batch.to_tensor(null_to_nan=True, row_major=False).to_numpy()
            sound &= (numbers.min(0) >= low) & (numbers.max(0) <= high)  # not if one is NaN
            with np.errstate(over="ignore", invalid="ignore"):
                blocks.append(numbers.astype(np.float32, "C"))
            del numbers  # before the next ones are there
        names = {self._plain[index][2] for index, fits in zip(plain, sound, strict=True) if fits}
        return _Numbers(blocks, [self._plain[index][0] for index in plain]), names

    def _told(self, cells: Mapping[int, Cells]) -> dict[str, npt.NDArray[np.float32]]:
        """The values of those columns of few short words in which nothing is wrong or missing."""
        own = {name: cells[self.places.columns[name][0]] for name in self._worded}
        if not self._shared:
            for name, column in own.items():
                self._decoders[name].learn([text or "" for text in as_text(whole(column[:FIRST])).to_pylist()])
            self._share()
        return {name: values for group in self._shared for name, values in group.sound(own).items()}

    def _share(self) -> None:
        """Have those columns whose words are known by now told together."""
        few = {name: column for name in self._worded if (column := self._decoders[name].few) is not None}
        known = {name: column for group in self._shared for name, column in group.columns.items()}
        if any(column is not known.get(name) for name, column in few.items()):
            self._shared = shared(few)

    def _decoded(self, column: Column, cells: Mapping[int, Cells]) -> Decoded:
        parts = [whole(cells[position]) for position in self.places.columns[column.name]]
        if column.name in self._spelled:
            parts = [lists_of(parts[0])]
        if column.name not in self._files:
            return self._decoders[column.name].decode(parts)
        names = np.array([(name or "").strip() for name in as_text(parts[0]).to_pylist()], object)
        absent = np.array([words.fold(name) in self._absent for name in names], bool)
        return Decoded(names, absent, [(words.MISSING, absent)] if absent.any() else [])

    def _faults(self, decoded: Mapping[str, Decoded], chosen: Mask, lines: Lines, report: Report) -> Mask:
        bad = np.zeros(len(lines), bool)
        for column in self._columns:
            if (decoded_column := decoded.get(column.name)) is None:
                continue
            for kind, mask in decoded_column.faults:
                if (mask := mask & chosen).any():
                    report.fault(column.name, kind, lines[mask])
                    bad |= mask
            if column.missing != "refuse":
                report.missing[column.name] += int((decoded_column.absent & chosen).sum())
        return bad

    def _store(
        self, decoded: Mapping[str, Decoded], numbers: _Numbers, told: Mapping[str, npt.NDArray[np.float32]],
        kept: Mask, persons: pa.Array | None, lines: Lines, state: _Pass,
    ) -> None:  # fmt: skip
        rows = state.grown.grow(int(kept.sum()))
        all_kept = bool(kept.all())
        arrays = state.grown.arrays
        if numbers.columns:
            numbers.store(arrays[NUMBERS][rows], None if all_kept else kept)
        for name, of_batch in (*told.items(), *((name, column.values) for name, column in decoded.items())):
            values = of_batch if all_kept else of_batch[kept]
            if name in self._files:
                state.files[name] += values.tolist()
            elif name in self._numbers:
                arrays[NUMBERS][rows, self._numbers[name]] = values
            elif name in self._codes:
                arrays[CODES][rows, self._codes[name]] = values
            else:
                arrays[name][rows] = values
        if persons is not None:
            state.persons.append(persons if all_kept else persons.filter(pa.array(kept)))
        if self.lines:
            state.lines.append(lines[kept])
