"""How long an audit of many tries may go on, and how long it will."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean


@dataclass
class Pace:
    """Counts from when it was made; `minutes` is how long tries may be begun, None for ever."""

    minutes: float | None = None
    made: float = field(default_factory=time.monotonic)
    begun: list[float] = field(default_factory=list)

    def may_begin(self) -> bool:
        """Whether another try may be begun, which is taken to begin now. The first may: whoever repeats comes on."""
        self.begun.append(time.monotonic())
        first = len(self.begun) == 1
        return first or self.minutes is None or self.begun[-1] - self.made <= 60 * self.minutes

    def left(self, tries: int) -> str:
        """How many tries are left, and how long they will take, in words; nothing if there are none."""
        if not tries:
            return ""
        took = [after - before for before, after in pairwise([*self.begun, time.monotonic()])]
        return f"{tries} more, about {tries * fmean(took) / 60:.0f} min"
