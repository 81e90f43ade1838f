"""What a trainer writes down of requests that it refused or failed at: the reasons leave for no other place."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import SovfedError, wire_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.trainer.books import Books
    from sovfed.federation.messages import Request

log = logging.getLogger(__name__)
TOLD_LINES: Final = 100
QUIET_S: Final = 3600.0


class Quiet:
    """Warnings that the network can cause: the first of an hour each on a line, then at 2, 4, 8, … times as many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since, self._count = clock, clock(), 0

    def tell(self, line: str, *values: object) -> None:
        if self._clock() - self._since > QUIET_S:
            self._since, self._count = self._clock(), 0
        self._count += 1
        if self._count <= TOLD_LINES or self._count & (self._count - 1) == 0:
            log.warning("%s (%d such lines in this hour)", line % values, self._count)


class Telling:
    """The institution's own account of what went wrong: its log, its evidence, and the count of failures."""

    def __init__(self, on_error: Callable[[Exception], None], books: Books) -> None:
        """As `TrainerService` has them."""
        self._on_error, self._allowance, self._evidence = on_error, books.allowance, books.evidence
        self._quiet = Quiet()

    def warn(self, line: str, *values: object) -> None:
        """A line of the log that the network can cause, and so is not written any number of times."""
        self._quiet.tell(line, *values)

    def lacking(self, request: Request, why: str) -> None:
        """A sum of the run goes on with nothing of this institution, or without some of its records."""
        self.warn("run %r: what this institution adds to a sum is lacking: %s", request.run, why)
        if self._allowance is None:
            return
        try:
            self._allowance.lacking(request.run)
        except Exception:
            log.exception("what a sum lacks could not be counted")

    def error(self, error: Exception) -> None:
        """What went wrong and became nothing in a sum."""
        self._on_error(error)

    def refused(self, request: Request, error: Exception) -> None:
        """Where the refusal cannot be logged as evidence, it stands all the same."""
        self._on_error(error)
        self._quiet.tell("refused a %s of run %r: %r", type(request).__name__, request.run, error)
        if self._evidence is None:
            return
        try:
            self._evidence.refused(request, wire_code(error))
        except Exception:
            log.exception("a refusal could not be logged")

    def failed(self, request: Request, error: Exception) -> None:
        """The work that `request` was admitted to."""
        self._on_error(error)
        log.error("a %s of run %r failed", type(request).__name__, request.run, exc_info=error)
        self.count(request, error)

    def count(self, request: Request, error: Exception) -> None:
        """Count a failure that depends on records, memory or disk."""
        if self._allowance is None:
            return
        try:
            self._allowance.failed(request.run, error.code if isinstance(error, SovfedError) else type(error).__name__)
        except Exception:
            log.exception("the failure could not be counted")
