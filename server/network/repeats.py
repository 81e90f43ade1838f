"""Log lines that a peer can cause as often as it likes do not push the others out of the log."""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

ALIKE: Final = (5, 0.2)  # lines that differ in long numbers only: so many at once, and so many a second on average
OF_ONE_KIND: Final = (200, 5.0)  # lines of one place in the code, whatever they say
MAX_KINDS: Final = 1000
_NUMBERS: Final = re.compile(r"[0-9]{5,}")  # ids, ports and sizes; not addresses and names


class LeaveOutRepeats(logging.Filter):
    """Passes a bounded number of lines that are alike; the next one that passes says how many did not.

    A traceback counts as its message: its text is not looked at.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: OrderedDict[str, tuple[float, float, int]] = OrderedDict()  # → (left, when, left out)

    def filter(self, record: logging.LogRecord) -> bool:
        kind = f"{record.name} {record.levelno} {str(record.msg)[:200]}"
        text = record.getMessage()
        alike = f"{kind} {_NUMBERS.sub('0', text)[:500]}"
        left_out = self._take(alike, *ALIKE)
        if left_out is None or (of_kind := self._take(kind, *OF_ONE_KIND)) is None:
            return False
        if left_out + of_kind:
            record.msg, record.args = f"{text} ({left_out + of_kind} lines like this were left out)", ()
        return True

    def _take(self, key: str, most: int, rate_per_s: float) -> int | None:
        """How many of the kind were left out before this one; None if it is left out too."""
        now = self._clock()
        tokens, when, left_out = self._kinds.pop(key, (float(most), now, 0))
        tokens = min(float(most), tokens + (now - when) * rate_per_s)
        passes = tokens >= 1.0
        self._kinds[key] = (tokens - 1.0, now, 0) if passes else (tokens, now, left_out + 1)
        if len(self._kinds) > MAX_KINDS:
            self._kinds.popitem(last=False)
        return left_out if passes else None


def leave_out_repeats(*loggers: logging.Logger) -> None:
    """Put the filter before every handler that these loggers have now."""
    for logger in loggers:
        for handler in logger.handlers:
            handler.addFilter(LeaveOutRepeats())
