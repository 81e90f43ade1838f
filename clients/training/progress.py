"""The steps of local work that this process has done: by them, work of hours is told from work that hangs."""

from __future__ import annotations

from typing import Final


class Progress:
    """A count that only goes up; nobody outside this process sees it."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self) -> None:
        """A batch was taken."""
        self.steps += 1


PROGRESS: Final = Progress()  # one trainer a process, one request at a time
