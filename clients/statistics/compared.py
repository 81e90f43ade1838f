"""This institution's own figures beside the federation's table: computed from its records, and told to nobody.

How far a column differs is the share of persons who would have to be in another cell, corrected for what the noise of
the federation's counts alone makes of two equal columns.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.training.statistics import totals
from sovfed.federation.statistics.table import table_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from sovfed.clients.data import Dataset
    from sovfed.clients.statistics.received import ReceivedTable
    from sovfed.federation.statistics.question import Block, Question
    from sovfed.federation.tasks.columns import Schema

APART: Final = 0.3  # share of persons in other cells, from which on a column is pointed at
UNTELLABLE: Final = 0.3  # of the same, that noise alone may make


@dataclass(frozen=True)
class Standing:
    """A column here and in the federation. `apart` is None where the noise is too much to tell."""

    column: str
    own: dict[str, Any]
    federation: dict[str, Any]
    apart: float | None

    @property
    def differs(self) -> bool:
        return self.apart is not None and self.apart > APART


def compare(table: ReceivedTable, records: Dataset, schema: Schema, question: Question) -> list[Standing]:
    """Every column of `table` beside the own one, and how far they are apart."""
    own, federation = totals(records, schema, question)[0], np.array(table.sums)
    own_table, told = table_of(question, own, 0.0, least=0), table_of(question, federation, table.deviation)
    blocks = [block for block in question.blocks if len(block.columns) == 1]
    rows = zip(blocks, own_table["columns"], told["columns"], strict=True)
    return [
        Standing(here["name"], here, there, _apart(block, own, federation, table.deviation))
        for block, here, there in rows
    ]


def lines(standings: list[Standing]) -> Iterator[str]:
    """What `compare` found, for people."""
    for standing in standings:
        yield f"{standing.column}: {_distance(standing)}"
        if "mean" in standing.own:
            for who, figures in (("here", standing.own), ("federation", standing.federation)):
                mean, deviation = (_figure(figures[name]) for name in ("mean", "deviation"))
                yield f"  {who.ljust(10)}  mean {mean}, standard deviation {deviation} {figures['unit']}".rstrip()
        shares = [_shares(figures["cells"]) for figures in (standing.own, standing.federation)]
        width = max(map(len, shares[0]))
        for cell in shares[0]:
            yield f"  {cell.ljust(width)}  here {_percent(shares[0][cell])}  federation {_percent(shares[1][cell])}"


def to_dict(standing: Standing) -> dict[str, Any]:
    return {**asdict(standing), "differs": standing.differs}


def _apart(block: Block, own: npt.NDArray[Any], federation: npt.NDArray[Any], noise: float) -> float | None:
    """Half of the sum of the cells' differences in share, less what noise makes of equal ones; None if that is much."""
    here, there = own[block.start : block.end], np.maximum(federation[block.start : block.end], 0.0)
    if here.sum() <= 0 or federation[0] <= 0 or there.sum() <= 0:
        return None
    by_noise = len(here) * noise * math.sqrt(2 / math.pi) / 2 / float(federation[0])
    if by_noise > UNTELLABLE:
        return None
    distance = float(np.abs(here / here.sum() - there / there.sum()).sum()) / 2
    return max(0.0, distance - by_noise)


def _distance(standing: Standing) -> str:
    if standing.apart is None:
        return "the federation's counts are too noisy to compare"
    if standing.differs:
        return f"{standing.apart:.0%} apart: another unit, another coding, or other people than elsewhere?"
    return f"{standing.apart:.0%} apart"


def _shares(cells: dict[str, int | None]) -> dict[str, float | None]:
    everybody = sum(count for count in cells.values() if count is not None)
    return {name: None if count is None or not everybody else count / everybody for name, count in cells.items()}


def _percent(share: float | None) -> str:
    return ("–" if share is None else f"{share:.0%}").rjust(4)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
