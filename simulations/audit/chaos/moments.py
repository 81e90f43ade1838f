"""When a moment of a run has come: read from what the processes write before they go on, not guessed by the clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ServiceError
from sovfed.federation.secagg.files import FOLDER, JOURNAL
from sovfed.federation.secagg.history import Joined, Revealed, Spent
from sovfed.server.runs import folders
from sovfed.server.runs.curves import ROUNDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_S: Final = 0.001
WORK_S: Final = 0.05  # from a round's first word to the middle of its work
KIND: Final = {"setup": Joined.KIND, "masking": Spent.KIND, "unmasking": Revealed.KIND}
RECORD: Final = (8, 16)  # bytes around an entry of the journal
KIND_AT: Final = 5  # byte of an entry that tells its kind


@dataclass
class JournalTail:
    """Counts the entries of an institution's journal by kind, reading only what was added since."""

    path: Path
    at: int = 0

    @classmethod
    def of(cls, home: Path) -> JournalTail:
        """From the end that the journal has now."""
        path = home / FOLDER / JOURNAL
        return cls(path, path.stat().st_size)

    def added(self) -> list[int]:
        """The kinds of the entries that are there since the last look."""
        with self.path.open("rb") as file:
            file.seek(self.at)
            content = file.read()
        kinds, offset, (head, tail) = list[int](), 0, RECORD
        while offset + head <= len(content):
            end = offset + head + int.from_bytes(content[offset : offset + 4], "big") + tail
            if end > len(content):
                break
            kinds.append(content[offset + head + KIND_AT])
            offset = end
        self.at += offset
        return kinds


class Watch:
    """Waits for moments of the run `name`, as the agency's and one institution's folders show them.

    Each wait raises ServiceError after `patience_s`.
    """

    def __init__(self, agency: Path, institution: Path, name: str, patience_s: float) -> None:
        self._rounds, self._journal = folders.run_folder(agency, name) / ROUNDS, JournalTail.of(institution)
        self._patience_s = patience_s

    def rounds(self) -> int:
        """Rounds that are written down."""
        try:
            return self._rounds.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def await_rounds(self, count: int) -> None:
        self._until(lambda: self.rounds() >= count, f"round {count}")

    def drain(self) -> None:
        """Forget what was written until now."""
        self._journal.added()

    def await_entry(self, moment: str) -> None:
        """Until the institution's journal has a new entry of the kind that stands for `moment`."""
        self._until(lambda: KIND[moment] in self._journal.added(), moment)

    def await_work(self) -> None:
        """Until a round has begun whose sum the institution has not masked for yet."""
        while True:
            self._journal.added()
            self.await_rounds(self.rounds() + 1)
            self._journal.added()
            time.sleep(WORK_S)
            if Spent.KIND not in self._journal.added():
                return

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise ServiceError(f"{self._rounds.parent.name}: {what} did not come")
            time.sleep(LOOK_S)
