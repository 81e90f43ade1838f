"""What a statistics run asks, and what each value of its vector is: all out of the task's schema, none of records.

A question is text, as in `age, sex*smoker, bins=20`: columns, cross tables of two columns, settings; `all` is every
column that can be counted. Its vector is [persons] and then, for each column, a count a cell and, of a number, Σv and
Σv² with v in [−½, ½] over its declared bounds; for each cross table a count a pair of cells; with `sites=1`, for each
column, each institution's own Σk²/2n over the cells' counts k of its n persons, which tells how far sites are apart.

Sensitivity. A person adds the mean of their rows' vectors. Of a row, the counts of a column have a norm of 1, its v and
v² of at most ½ and ¼, a cross table of 1, the first value of 1; norms are convex, so the mean's is at most
√(1 + columns + 5/16 · numbers + crosses), however many rows the person has. Adjacency: add or remove one person.

Σk²/2n is no sum over persons. One who adds a ≤ 1 to n, and as much to the cells together, moves Σk²/n by
[2Σka + Σa² − a·Σk²/n]/(n + a): at most (2na + a²)/(n + a) ≤ 2a, since k ≤ n, and at least −a, since Σk² ≤ n². So each
of these values moves by at most 1, and their number goes under the root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError, ProtocolError
from sovfed.federation.schema import nearest
from sovfed.federation.statistics.settings import LEAST, MOST, setting
from sovfed.federation.tasks.columns import EPOCH, REFUSE, SCALARS

if TYPE_CHECKING:
    from sovfed.federation.messages import PrivateRequest
    from sovfed.federation.tasks.columns import Column, Schema

ALL: Final = "all"
COUNTED: Final = (*SCALARS, "category")
MAX_TEXT: Final = 4_096
MAX_CELLS: Final = 1 << 16
MARGIN: Final = 2.0**-10  # of the clip: it pays for the rounding of the sum to float64
MISSING: Final = "missing"
DIGITS: Final = (6, 9, 12, 17)  # of a bin's edge


@dataclass(frozen=True)
class Block:
    """The counts of `columns`, one or two, from `start` on: `shape` says how many cells each has."""

    columns: tuple[Column, ...]
    start: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape)

    @property
    def moments(self) -> bool:
        """Whether Σv and Σv² stand behind the counts."""
        return len(self.columns) == 1 and measured(self.columns[0])


@dataclass(frozen=True)
class Question:
    """A question that was read: `bins` of each number, `least`, the smallest count that is shown, and `sites`.

    `sites` is 1 where it is asked how far institutions are apart, else 0.
    """

    columns: tuple[Column, ...]
    crosses: tuple[tuple[Column, Column], ...]
    bins: int = 10
    least: int = LEAST
    sites: int = 0

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Where the counts of each column, then of each cross table stand."""
        blocks: list[Block] = []
        start = 1
        for columns in (*((column,) for column in self.columns), *self.crosses):
            block = Block(columns, start, tuple(map(self.count, columns)))
            blocks.append(block)
            start = block.end + 2 * block.moments
        return tuple(blocks)

    @property
    def between(self) -> int:
        """Where the values stand that tell of sites, one for each of `columns` where they are asked for."""
        last = self.blocks[-1]
        return last.end + 2 * last.moments

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self.between + self.sites * len(self.columns)

    @property
    def clip(self) -> float:
        """By how much one person can move the vector, in L2: the proof is at the head of this module."""
        numbers = sum(block.moments for block in self.blocks)
        return math.sqrt(1 + len(self.blocks) + 5 / 16 * numbers + self.sites * len(self.columns)) * (1 + MARGIN)

    def count(self, column: Column) -> int:
        """How many cells `column` has."""
        own = self.bins if measured(column) else len(column.categories or ("no", "yes"))
        return own + (column.missing != REFUSE)

    def cells(self, column: Column) -> tuple[str, ...]:
        """The name of each cell of `column`, no two alike; the last one is `missing` where a value may be."""
        own = self._bins(column) if measured(column) else column.categories or ("no", "yes")
        return _unequal((*own, MISSING) if column.missing != REFUSE else tuple(own))

    def edges(self, column: Column) -> tuple[float, ...]:
        """Of a number: the least value of each bin, and the greatest of the last."""
        low, high = column.bounds
        return tuple(low + (high - low) * step / self.bins for step in range(self.bins + 1))

    def _bins(self, column: Column) -> list[str]:
        """In as few digits as tell the edges apart."""
        edges = self.edges(column)
        shown = next(
            (words for digits in DIGITS if len(set(words := _shown(column, edges, digits))) == len(edges)),
            _shown(column, edges, DIGITS[-1]),
        )
        return [f"{low} to {high}" for low, high in pairwise(shown)]


def measured(column: Column) -> bool:
    """Whether the column's values are numbers that have a mean."""
    return column.kind in ("number", "date")


def _shown(column: Column, values: tuple[float, ...], digits: int) -> list[str]:
    """Values for people: of a date its day."""
    if column.kind == "date":
        return [f"{EPOCH + timedelta(days=round(value))}" for value in values]
    return [f"{value:.{digits}g}" for value in values]


def _unequal(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names`, a further one of the same told by a number: bins within one day, a category that is called missing."""
    told, times = dict[str, None](), dict[str, int]()
    for name in names:
        other = name
        while other in told:
            times[name] = times.get(name, 1) + 1
            other = f"{name} ({times[name]})"
        told[other] = None
    return tuple(told)


def read_question(text: str, schema: Schema) -> Question:
    """What `text` asks of records of `schema`. Raises ConfigError naming what is no column, or cannot be counted."""
    known = {column.name: column for column in schema.columns if not column.shape and column.kind in COUNTED}
    columns: dict[str, Column] = {}
    crosses: list[tuple[Column, Column]] = []
    settings: dict[str, int] = {}
    for item in (item.strip() for item in text.split(",") if item.strip()):
        name, equals, value = item.partition("=")
        if equals and name.strip() in MOST:
            settings[name.strip()] = setting(name.strip(), value)
        elif item == ALL:
            columns |= known
        elif item in known:
            columns[item] = known[item]
        elif "*" in item:
            first, second = (_column(each.strip(), known, schema) for each in item.split("*", 1))
            if first == second or (first, second) in crosses or (second, first) in crosses:
                raise ConfigError(f"statistics: '{item[:80]}' is no cross table of two columns, or there twice")
            crosses.append((first, second))
        else:
            columns[item] = _column(item, known, schema)
    if not columns and not crosses:
        raise ConfigError(f"statistics: {text[:80]!r} names no column; '{ALL}' is all of {', '.join(list(known)[:20])}")
    question = Question(tuple(columns.values()), tuple(crosses), **settings)
    if question.size > MAX_CELLS:
        raise ConfigError(f"statistics: {question.size} counts, at most {MAX_CELLS}: take fewer columns or bins")
    return question


def question_of(request: PrivateRequest, schema: Schema) -> Question:
    """The question of `request`. Raises ProtocolError unless its noise is for what one person can add to the sum.

    Everybody is counted, once: a request that says that persons are sampled would be charged too little.
    """
    try:
        question = read_question(request.statistics, schema)
    except ConfigError as error:
        raise ProtocolError(str(error)) from error
    asked = (request.mechanism, request.sampling_rate, request.rounds, request.steps, request.clip)
    expected = ("distributed", 1.0, 1, 1, question.clip)
    if asked != expected:
        raise ProtocolError(f"statistics with (mechanism, sampling rate, rounds, steps, clip) {asked}, not {expected}")
    return question


def _column(name: str, known: dict[str, Column], schema: Schema) -> Column:
    if name in known:
        return known[name]
    if any(column.name == name for column in schema.columns):
        raise ConfigError(f"statistics: column '{name[:64]}' is of values that cannot be counted, as images are")
    raise ConfigError(f"statistics: the task has no column '{name[:64]}'{nearest(name, known)}")
