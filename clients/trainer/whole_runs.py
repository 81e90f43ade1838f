"""What is asked of a run beside its sums: whether all of it would be answered, its ledger's head, its model to keep.

Nothing here touches a record or a mask, and no reply is kept: asked again, it may be another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sovfed.clients.models.received import facts_of_release, keep_released, plan_of
from sovfed.clients.statistics.received import keep_table, received_table
from sovfed.clients.trainer.admission import require_question
from sovfed.federation.errors import BoundError, PolicyError
from sovfed.federation.messages import (
    LedgerReply,
    LedgerRequest,
    PrivateRequest,
    ReleaseReply,
    ReleaseRequest,
    RunReply,
    RunRequest,
    TrainRequest,
)
from sovfed.federation.secagg.request import whole_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.ledger.book import PrivacyLedger
    from sovfed.clients.ledger.entries import Whose
    from sovfed.clients.trainer.books import Books
    from sovfed.clients.trainer.masking import Masking
    from sovfed.clients.trainer.telling import Telling
    from sovfed.federation.messages import Bytes, LastRequest
    from sovfed.federation.orders.order import RunOrder
    from sovfed.federation.tasks import Task


@dataclass(frozen=True)
class WholeRuns:
    """What the policy, the study and the ledger say of whole runs; the fields are as `TrainerService` has them."""

    check_run: Callable[[RunRequest], list[BoundError]]
    books: Books
    whose: Callable[[Task], Whose]
    telling: Telling

    def consider(self, request: RunRequest, last: LastRequest, task: Task) -> RunReply:
        """What of the run, which ends with `last`, would be refused, and what became of its order."""
        bounds = self.check_run(request)
        if isinstance(last, PrivateRequest):
            require_question(last, task, request.parameters)
        if isinstance(last, PrivateRequest) and (ledger := self.books.open_ledger()) is not None:
            from sovfed.clients.training.private import plan_of

            if reason := ledger.would_refuse(last.grant, plan_of(last), whose=self.whose(task)):
                bounds.append(BoundError(reason, "privacy"))
        state, answer = self._ordered(request, bounds)
        for error in bounds:
            self.telling.warn("run %r would not be answered to its end: %s", request.run, error)
        beyond = ",".join(dict.fromkeys(error.limit for error in bounds))
        return RunReply(beyond=beyond, order=state, answer=answer)

    def _ordered(self, request: RunRequest, bounds: list[BoundError]) -> tuple[str, Bytes]:
        """What became of the run's order, and the institution's word on it; adds to `bounds` what a rule forbids."""
        nothing_said = np.zeros(0, np.uint8)
        if self.books.orders is None or bounds:
            return "", nothing_said
        try:
            state, answer = self.books.orders.consider(request)
        except BoundError as error:
            bounds.append(error)
            return "", nothing_said
        return state, nothing_said if answer is None else np.frombuffer(answer.to_bytes(), np.uint8)


def countersign(request: LedgerRequest, masking: Masking, ledger: PrivacyLedger | None) -> LedgerReply:
    """Where the ledger stands, after it was held to the head that the coordinator knows. Raises SovfedError."""
    if ledger is None:
        raise PolicyError("a simulation has no privacy ledger")
    if request.head.size:
        masking.check_countersignature(request)
        signature = request.signature.tobytes()
        ledger.countersign(
            whole_run(request.run), request.seq, request.head.tobytes().hex(), signature, ours=masking.told(request)
        )
    return masking.tell(*ledger.position())


def keeping(
    request: ReleaseRequest,
    task: Task,
    books: Books,
    last_trained: Callable[[str], TrainRequest | None],
) -> Callable[[], ReleaseReply]:
    """The work of keeping a run's model beside the plan of its last request that was trained for here.

    Raises SovfedError where the request is not whole.
    """
    facts = facts_of_release(request, task)

    def keep() -> ReleaseReply:
        if books.received is not None:
            keep_released(books.received, task, request, facts, plan_of(last_trained(request.run)))
        if books.evidence is not None:
            books.evidence.received(request)
        return ReleaseReply()

    return keep


def keeping_table(
    request: ReleaseRequest,
    task: Task,
    books: Books,
    order: RunOrder | None,
) -> Callable[[], ReleaseReply]:
    """The work of keeping a run's table, its noised sums and as it was signed.

    Raises SovfedError where the request is not whole, or the table is not of the run's `order`.
    """
    table = received_table(request, task) if request.statistics else None
    sheets = books.sheets
    signed = sheets.check(request, order) if sheets is not None and request.table.size else b""

    def keep() -> ReleaseReply:
        if books.received is not None and table is not None:
            keep_table(books.received.folder, table)
        if sheets is not None and signed:
            sheets.keep(request.run, signed)
        if books.evidence is not None:
            books.evidence.received(request)
        return ReleaseReply()

    return keep
