"""Where a table's rows come from: a header, then batches of cells as Arrow holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sovfed.clients.data.tables.header import Places
    from sovfed.clients.data.tables.report import Lines, Report

    Cells: TypeAlias = pa.Array | pa.ChunkedArray


class Batch(NamedTuple):
    """Some rows: of each column that was asked for its cells, all in the same chunks, and each row's line."""

    cells: Sequence[Cells]
    lines: Lines


class Restart(Exception):  # noqa: N818 - no error: the source has learnt how the file is written
    """All batches so far are void: ask for them anew."""


class Source(Protocol):
    """A table. `header` has its columns' names, `word` says what a line number counts.

    It may have `guessed`, what was told from its records (`not_private`), and `expected`, about how many rows it has;
    `spells_lists` says that its cells are of `values.cells_of`, so that lists of numbers come as their JSON; `omits`
    that a record may leave out what it lacks, so that `header` is what some records have.
    """

    where: str
    header: Sequence[str]
    word: str
    decimal: str

    def batches(self, wanted: Sequence[int], numeric: Sequence[int], report: Report) -> Iterator[Batch]:
        """The columns at `wanted`, those at `numeric` among them as numbers where the source can.

        May raise `Restart`. Faults of whole rows go to `report`. Raises DataError.
        """


def whole(cells: Cells) -> pa.Array:
    """The cells of a column in one array."""
    return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells


def not_private(places: Places, source: Source) -> str:
    """Why no private run may use the table, or "": whose a row is, or how it is read, would depend on other rows."""
    guessed: Sequence[str] = getattr(source, "guessed", ())
    if places.not_private or not guessed:
        return places.not_private
    return (
        "how the table is written was told from its records, so one person's row could change how all others are read: "
        f"declare {', '.join(guessed)}"
    )


def no_rows(report: Report) -> Any:
    """Forget what was counted, before the rows come again."""
    report.rows = report.used = report.empty = report.bad = 0
    report.missing.clear()
    report.faults.clear()
    report.bad_lines.clear()
