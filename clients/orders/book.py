"""An institution's orders on disk: what was proposed, what its officers answered, under which order each run is.

orders/withdrawn.json                digests of tasks of which the institution has withdrawn from a run
orders/answers/DIGEST.json           an officer's signed word; the trainer reads it and cannot write there
orders/state/proposed/DIGEST.json    a proposal as it came; the trainer's own, as all under orders/state
orders/state/consents/DIGEST.json    the node's own word, where the institution consented in advance
orders/state/officers.json           the officers in the policy that the trainer read as it started, with their keys
orders/state/runs.json               Flower's run → the order, and how many messages were answered under it
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from sovfed.clients.orders.places import ANSWERS, CONSENTS, FOLDERS, IN_FORCE, PROPOSED, RECEIPTS, RUNS, WITHDRAWN
from sovfed.federation.errors import IdentityError, OrderError, SovfedError
from sovfed.federation.files import private_directory, stamp, write_private
from sovfed.federation.orders.answers import UNREADABLE, Answer, read_answer
from sovfed.federation.orders.order import Proposal, read_proposal
from sovfed.federation.schema import bind, bounded, named, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)
MAX_WAITING: Final = 64  # proposals without an answer; more are refused, so that none pushes another out
MAX_KEPT: Final = 1_024  # proposals in all: of the answered, the oldest are forgotten
MAX_RUNS: Final = 4_096  # beside those under a permit, of which none is forgotten
SHORTEST: Final = 6  # digits that name an order on a command line


@dataclass(frozen=True)
class Bound:
    """Under which order a Flower run is, and what was answered under it at most, by kind of message."""

    order: str = bounded(low=64, high=64)
    name: str = named(high=128)
    permit: str = named("", 0, 64)
    epsilon: float = bounded(0.0, 0.0, 1e9)
    at: float = 0.0
    answered: dict[str, int] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()  # Flower's runs that were under the order before: answered no more, purged with it


class OrderBook:
    """The orders of one home. Only the trainer writes `state`, only an officer's command `answers`."""

    def __init__(self, home: Path) -> None:
        self._home = home

    @property
    def home(self) -> Path:
        """The home that it is of."""
        return self._home

    def make(self) -> OrderBook:
        """The book, its folders made where they are missing."""
        for folder in FOLDERS:
            private_directory(self._home / folder)
        return self

    def file(self, proposal: Proposal, now: float) -> bool:
        """Keep `proposal`; whether it is new. Raises OrderError where too many wait for an answer already.

        One that has ended waits for nothing any more, and goes before one that has not.
        """
        path = self._home / PROPOSED / f"{proposal.order.digest}.json"
        if path.exists():
            return False
        paths = sorted((self._home / PROPOSED).glob("*.json"), key=lambda known: known.stat().st_mtime_ns)
        answered = [known for known in paths if self._is_answered(known.stem)]
        waiting = [known for known in paths if known not in answered]
        if len(waiting) >= MAX_WAITING and not self._is_answered(proposal.order.digest):
            ended = [known for known in waiting if self._has_ended(known.stem, now)]
            if not ended:
                raise OrderError(f"{MAX_WAITING} orders wait for an officer already; `sovfed client orders list`")
            for known in ended:
                known.unlink()
        for old in answered[: max(0, len(paths) + 1 - MAX_KEPT)]:
            old.unlink()
            (self._home / CONSENTS / old.name).unlink(missing_ok=True)
        write_private(path, proposal.to_bytes())
        return True

    def proposals(self) -> list[Proposal]:
        """All that is kept and can be read, the newest first; a damaged one is told in the log."""
        kept = [self.proposal(path.stem) for path in (self._home / PROPOSED).glob("*.json")]
        return sorted((proposal for proposal in kept if proposal), key=lambda proposal: -proposal.order.proposed)

    def proposal(self, digest: str) -> Proposal | None:
        """The proposal of `digest`, which is recomputed; None if there is none, or it is damaged."""
        path = self._home / PROPOSED / f"{digest}.json"
        try:
            kept = read_proposal(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except (OSError, SovfedError) as error:
            log.warning("%s: %s", path, error)
            return None
        return kept if kept.order.digest == digest else None

    def named(self, text: str) -> Proposal:
        """The proposal whose digest begins with `text`, or whose run it names. Raises OrderError unless it is one."""
        kept = self.proposals()
        fitting = [
            proposal for proposal in kept
            if proposal.order.run == text or (len(text) >= SHORTEST and proposal.order.digest.startswith(text))
        ]  # fmt: skip
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            digests = ", ".join(proposal.order.digest[:12] for proposal in fitting)
            raise OrderError(f"'{text}' names {len(fitting)} orders: {digests}; name one by its digest")
        raise OrderError(f"no order '{text[:64]}' here{nearest(text, (proposal.order.run for proposal in kept))}")

    def answer(self, digest: str) -> Answer | None:
        """What an officer wrote about the order of `digest`; None if nothing. Raises IdentityError if it is damaged."""
        return _answer_in(self._home / ANSWERS / f"{digest}.json")

    def answer_stamp(self, digest: str) -> tuple[int, int, int] | None:
        """Changes when the officer's answer does."""
        return stamp(f"{self._home}/{ANSWERS}/{digest}.json")

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While an answer is checked and written, no other is. Raises OrderError where one is at this moment."""
        folder = os.open(self._home / ANSWERS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise OrderError(
                "another answer is being written at this moment: nothing was written; try again"
            ) from error
        finally:
            os.close(folder)

    def write_answer(self, answer: Answer) -> None:
        write_private(self._home / ANSWERS / f"{answer.order}.json", answer.to_bytes())

    def officers_in_force(self) -> dict[str, str]:
        """The officers whose words the trainer that started last takes, with their keys (base64)."""
        try:
            values = json.loads((self._home / IN_FORCE).read_bytes())
            return {str(name): str(key) for name, key in values.items()}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}

    def put_in_force(self, officers: Mapping[str, str]) -> None:
        """Write down by whose keys words are taken from now on."""
        write_private(self._home / IN_FORCE, json.dumps(dict(officers)).encode())

    def consent(self, digest: str) -> Answer | None:
        """What this node consented to in the institution's name. Raises IdentityError."""
        return _answer_in(self._home / CONSENTS / f"{digest}.json")

    def write_consent(self, answer: Answer) -> None:
        write_private(self._home / CONSENTS / f"{answer.order}.json", answer.to_bytes())

    def withdrawn_tasks(self) -> frozenset[str]:
        """Digests of the tasks of which this institution has withdrawn from a run: to no other is consented in advance.

        Raises OrderError if that cannot be read.
        """
        path = self._home / WITHDRAWN
        try:
            return frozenset(str(digest) for digest in json.loads(path.read_bytes()))
        except FileNotFoundError:
            return frozenset()
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise OrderError(f"{path}: cannot be read") from error

    def withdraw(self, answer: Answer, task_digest: str) -> None:
        """Write down that the institution withdraws from the run of an order, and of which task that is."""
        tasks = sorted(self.withdrawn_tasks() | {task_digest})
        write_private(self._home / WITHDRAWN, json.dumps(tasks).encode())
        self.write_answer(answer)

    def runs(self) -> dict[str, Bound]:
        """The runs that are, or were, under an order here, the newest last. Raises OrderError if that is damaged."""
        path = self._home / RUNS
        try:
            values = json.loads(path.read_bytes())
            return {str(run): bind(Bound, entry, str(path), OrderError) for run, entry in values.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
            raise OrderError(f"{path}: cannot be read; remove it only if you know why") from error

    def write_runs(self, runs: dict[str, Bound]) -> None:
        newest = dict(list(runs.items())[-MAX_RUNS:])
        newest = {run: entry for run, entry in runs.items() if run in newest or entry.permit}
        write_private(self._home / RUNS, json.dumps({run: asdict(entry) for run, entry in newest.items()}).encode())

    def is_purged(self, permit: str) -> bool:
        """Whether what was under `permit` has been erased here."""
        return (self._home / RECEIPTS / f"{permit}.json").exists()

    def words(self) -> Iterator[tuple[Proposal, Answer | None]]:
        """Each proposal with the institution's word on it, an officer's before the node's."""
        for proposal in self.proposals():
            yield proposal, self.word(proposal.order.digest)

    def word(self, digest: str) -> Answer | None:
        """The institution's word on the order of `digest`, to be shown: one that cannot be read is UNREADABLE."""
        try:
            return self.answer(digest) or self.consent(digest)
        except IdentityError as error:
            log.warning("%s", error)
            return Answer(digest, "", UNREADABLE)

    def _has_ended(self, digest: str, now: float) -> bool:
        """Whether the order of `digest` holds no more; one that cannot be read never holds."""
        kept = self.proposal(digest)
        return kept is None or kept.order.expires <= now

    def _is_answered(self, digest: str) -> bool:
        return any((self._home / folder / f"{digest}.json").exists() for folder in (ANSWERS, CONSENTS))


def _answer_in(path: Path) -> Answer | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IdentityError(f"{path}: cannot be read") from error
    return read_answer(data, str(path))
