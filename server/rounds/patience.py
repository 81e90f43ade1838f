"""How long a round waits for whom: until enough have answered and the rest had a fair chance, not until a deadline.

`Patience` is of one exchange, `Standing` of a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

REST_S: Final = (60.0, 3_600.0)  # first and longest pause of an institution that keeps a round waiting


@dataclass
class Patience:
    """Tells how many seconds an exchange should still wait for its next answer.

    No end is in sight until `least` have answered. From then on the exchange is over when nobody has answered for
    `grace_s`, or for `factor` times what the slowest took so far, if that is longer: work of hours has hours of grace.
    """

    least: int
    grace_s: float = math.inf
    factor: float = 0.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self._last = self.clock()
        self._answers = 0

    def answered(self) -> None:
        """An institution has done what it was asked."""
        self._last, self._answers = self.clock(), self._answers + 1

    def remaining_s(self) -> float:
        """Seconds that the next answer may still take."""
        if self._answers < self.least:
            return math.inf
        grace = max(self.grace_s, self.factor * (self._last - self._began))
        return self._last + grace - self.clock()


@dataclass
class _Rest:
    """An institution that did not answer in time: how often in a row, when, and until when it is left out."""

    misses: int
    since: float
    until: float


class Standing:
    """Who is asked in the next round. `heard` tells when a node last answered anything, in time or late.

    Who misses a deadline is left out, after the first time until it is heard of again, or for a minute; from the second
    in a row on for pauses that double up to an hour, also if it answers late: it is too slow for this cohort.
    """

    def __init__(
        self, heard: Callable[[int], float] = lambda _node: -math.inf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._heard, self._clock = heard, clock
        self._rests: dict[int, _Rest] = {}

    def missed(self, node: int) -> None:
        """`node` was waited for, in vain."""
        now, misses = self._clock(), self._rests[node].misses + 1 if node in self._rests else 1
        pause = min(REST_S[0] * 2 ** (misses - 1), REST_S[1])
        self._rests[node] = _Rest(misses, now, now + pause)

    def answered(self, node: int) -> None:
        """`node` was asked and answered in time, if only by a refusal."""
        self._rests.pop(node, None)

    def ready(self, nodes: Sequence[int], least: int) -> Sequence[int]:
        """Those of `nodes` to ask: all that do not rest, and if these are fewer than `least`, all."""
        if not self._rests:
            return nodes
        resting = self.resting(nodes)
        awake = [node for node in nodes if node not in resting]
        return awake if len(awake) >= least else nodes

    def resting(self, nodes: Collection[int]) -> list[int]:
        """Those of `nodes` that are left out now."""
        now = self._clock()
        return [node for node, rest in self._rests.items() if node in nodes and not self._is_over(node, rest, now)]

    def _is_over(self, node: int, rest: _Rest, now: float) -> bool:
        return now >= rest.until or (rest.misses == 1 and self._heard(node) > rest.since)
