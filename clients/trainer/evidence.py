"""What the trainer puts into the institution's log: each request that it admits, and, counted, what it refuses."""

from __future__ import annotations

import hashlib
import logging
import os
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import EvidenceError, PolicyError, ServiceError
from sovfed.federation.evidence.counted import Counted
from sovfed.federation.evidence.noting import Noting
from sovfed.federation.evidence.store import LogReader, has_log, record
from sovfed.federation.evidence.witness import SPLIT, problems
from sovfed.federation.messages import EvaluateRequest, PrivateRequest, ProfileRequest, ReleaseRequest, TrainRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sovfed.federation.messages import Request, SumRequest

log = logging.getLogger(__name__)
REFUSE: Final = "refuse"
RECORD: Final = "record"
ASKED: Final = {
    ProfileRequest: "profile", TrainRequest: "train", PrivateRequest: "private", EvaluateRequest: "evaluate",
}  # fmt: skip


class Evidence:
    """The log of the institution in `home`, as its trainer writes it.

    `on_split` says what becomes of requests once the agency's log was seen to be shown in another form, or rolled back.
    """

    def __init__(self, home: Path, on_split: str = REFUSE) -> None:
        self._home, self._on_split, self._split_file = home, on_split, str(home / SPLIT)
        self._refused, self._received = Counted(home, "refusal"), Counted(home, "received")
        self._told = ""
        self._noting = Noting(home)
        try:
            if has_log(home):
                LogReader(home).extent()  # undoes what a trainer that died has left half done: the gateway cannot
                self._noting.begin()
        except (EvidenceError, ServiceError) as error:  # whoever writes next says so too
            log.warning("%s", error)

    def require_whole(self) -> None:
        """Raises PolicyError where the agency's log does not go on from what was seen, and the policy refuses that."""
        why = self._split()
        if why and self._on_split == REFUSE:
            raise PolicyError(f"{why}; see `sovfed client log heads`")

    def _split(self) -> str:
        """Why the agency's log is not cosigned any more, which is logged once; "" if it is."""
        if not os.path.exists(self._split_file):  # noqa: PTH110 - for every message, and a Path takes longer
            return ""
        why = "; ".join(problems(self._home).values())
        if why and why != self._told:
            record(self._home, "split", why=why)
            self._told = why
        return why

    def admitted(self, request: SumRequest) -> Callable[[], object]:
        """Log that `request` is answered; the reply must not leave before what this returns was called, which waits for
        the disk.

        Raises SovfedError where it cannot be written.
        """
        fields = {
            "run": request.run, "request": ASKED[type(request)], "task": request.task, "task_digest": request.digest,
            "masked": bool(request.begin.size), "m1": hashlib.sha256(request.begin.tobytes()).hexdigest(),
        }  # fmt: skip
        number = 0 if isinstance(request, ProfileRequest) else request.round
        self._noting.write("round", **fields, round=number)
        return self._noting.sync

    def received(self, request: ReleaseRequest) -> None:
        """Count a model that came back."""
        self._received.add(task=request.task)

    def refused(self, request: Request, code: str) -> None:
        """Count a refusal."""
        self._refused.add(request=type(request).__name__, code=code)

    def look(self) -> None:
        """Write what was counted, once a minute is over, and that a log was seen to be another."""
        self._noting.look()
        self._split()
        self._refused.look()
        self._received.look()

    def close(self) -> None:
        """Write all that was counted."""
        self._refused.close()
        self._received.close()
        self._noting.close()
