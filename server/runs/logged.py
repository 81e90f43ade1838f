"""A run in the agency's log: its beginning, each round while the next one goes on, its model and its end."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.evidence.entries import listed
from sovfed.federation.evidence.noting import Noting
from sovfed.federation.evidence.store import record
from sovfed.federation.orders.answers import decision_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.config import Config

ENTERED_S: Final = 0.5  # rounds of so long are entered in the log's database together


class RunLog:
    """What is told of the run `name`, Flower's `run`. Raises ServiceError where the log cannot be written."""

    def __init__(self, home: Path, name: str, run: str) -> None:
        self._home, self._fields = home, {"name": name, "run": run}
        self._pool, self._last = ThreadPoolExecutor(1), Future[None]()
        self._last.set_result(None)
        self._noting, self._entered = Noting(home), time.monotonic()
        self._said: dict[str, Any] = {}

    def begin(self, config: Config, *, resume: bool) -> None:
        """The run begins, or goes on."""
        from sovfed.server.rounds.checkpoint import config_digest

        self._note(
            "run", status="running", resumed=resume, task=config.task.name, config=config_digest(config),
            secure_aggregation=config.secagg.enabled,
            privacy=config.privacy.mechanism if config.privacy.private else "",
        )  # fmt: skip

    def round(self, line: dict[str, Any]) -> None:
        """A round is over, as its `line` says; on disk once the next is."""
        refused = defaultdict[str, list[str]](list)
        for name, code in line["refused"].items():
            refused[code].append(name)
        fields = {
            "round": line["round"], "participants": listed(line["participants"]), "late": listed(line["late"]),
            "left_out": listed(line["left_out"]), "attempts": line["attempts"],
            "refused": {code: listed(names) for code, names in refused.items()},
        }  # fmt: skip
        self._last.result()
        self._last = self._pool.submit(self._note_round, fields)

    def _note_round(self, fields: dict[str, Any]) -> None:
        self._noting.note("round", **self._fields, **fields)
        if time.monotonic() - self._entered > ENTERED_S:
            self._noting.look()
            self._entered = time.monotonic()

    def answers(self, order: str, answers: Mapping[str, bytes]) -> None:
        """What the institutions said to the `order` of that digest: each one's word, and the digest of what it sent."""
        said = defaultdict[str, list[str]](list)
        for name, data in answers.items():
            said[decision_in(data)].append(name)
        fields = {
            "order": order, "answers": {name: hashlib.sha256(data).hexdigest() for name, data in answers.items()},
            "said": {decision: listed(names) for decision, names in said.items()},
        }  # fmt: skip
        if answers and fields != self._said:
            self._said = fields
            self._note("order", event="answered", **fields)

    def model(self, summary: dict[str, Any]) -> None:
        """The run's model was made."""
        self._note(
            "model", sha256=summary["model_sha256"], rounds=summary["rounds"], of_round=summary["model_of_round"],
            institutions=listed(summary["institutions"]), delivered_to=listed(summary["delivered_to"]),
            **({"started_from": begun} if (begun := summary.get("started_from_sha256")) else {}),
        )  # fmt: skip

    def end(self, status: str) -> None:
        """The run has ended, with all of its rounds in the log."""
        try:
            self._last.result()
        finally:
            self._pool.shutdown()
            self._noting.close()
        self._note("run", status=status)

    def _note(self, kind: str, /, **fields: Any) -> int:
        return record(self._home, kind, **self._fields, **fields)
