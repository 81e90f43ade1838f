"""Numbers that stand apart from all others: codes of a missing value such as -99, and slips such as an age of 620."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CODES: Final = frozenset((-9.0, -99.0, -999.0, -9999.0, -99999.0, 99.0, 999.0, 9999.0, 99999.0))
ENOUGH: Final = 20  # numbers, fewer of which say nothing of what is usual
SLIPS: Final = 0.01  # of the numbers at most
FAR: Final = 2.0  # as much as all others reach, and more, lies between them and a slip


@dataclass(frozen=True)
class Apart:
    """The numbers without those that stand apart: codes with how often each is there, and how many slips there are."""

    rest: Sequence[float]
    codes: Mapping[float, int]
    slips: int

    @property
    def coded(self) -> int:
        return sum(self.codes.values())


def set_apart(numbers: Sequence[float]) -> Apart:
    """Look at `numbers`; where there are few, none stands apart."""
    usual = [number for number in numbers if number not in CODES]
    if len(usual) < ENOUGH:
        return Apart(numbers, {}, 0)
    low, high = min(usual), max(usual)
    suspects = sorted(CODES.intersection(numbers))
    codes = {code: numbers.count(code) for code in suspects if _is_code(code, low, high)}
    rest = sorted(number for number in numbers if number not in codes)
    kept = _without_slips(rest)
    return Apart(kept, codes, len(rest) - len(kept))


def _is_code(code: float, low: float, high: float) -> bool:
    """A negative one where nothing else is negative, or one further above all others than they reach."""
    return low >= 0 if code < 0 else code - high > high - low


def _without_slips(ordered: list[float]) -> list[float]:
    """`ordered` without a few at either end that lie far from all others."""
    most = max(1, int(SLIPS * len(ordered)))
    first = next((cut for cut in range(most, 0, -1) if _far(ordered[cut] - ordered[cut - 1], ordered[cut:])), 0)
    last = next((cut for cut in range(most, 0, -1) if _far(ordered[-cut] - ordered[-cut - 1], ordered[:-cut])), 0)
    return ordered[first : len(ordered) - last]


def _far(gap: float, others: Sequence[float]) -> bool:
    return others[-1] > others[0] and gap > FAR * (others[-1] - others[0])
