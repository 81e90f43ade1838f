"""What is asked of a run beside its sums: whether all of it would be answered, its ledger's head, its model to keep.

Nothing here touches a record or a mask, and no reply is kept: asked again, it may be another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

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
    from sovfed.clients.models.received import ReceivedModels
    from sovfed.clients.orders.gate import OrderGate
    from sovfed.clients.statistics.sheets import KeptSheets
    from sovfed.clients.trainer.evidence import Evidence
    from sovfed.clients.trainer.masking import Masking
    from sovfed.clients.trainer.telling import Telling
    from sovfed.federation.messages import Bytes, LastRequest
    from sovfed.federation.orders.order import RunOrder
    from sovfed.federation.tasks import Task


CheckRun: TypeAlias = "Callable[[RunRequest], list[BoundError]]"
BESIDE_BYTES: Final = 1 << 14  # of a message, beside the model


@dataclass(frozen=True)
class WholeRuns:
    """What the policy, the study and the ledger say of whole runs; the fields are as `TrainerService` has them."""

    check_run: CheckRun
    orders: OrderGate | None
    whose: Callable[[Task], Whose]
    telling: Telling

    def consider(
        self,
        request: RunRequest,
        last: LastRequest,
        task: Task,
        open_ledger: Callable[[], PrivacyLedger | None],
    ) -> RunReply:
        """What of the run, which ends with `last`, would be refused, and what became of its order."""
        bounds = self.check_run(request)
        if isinstance(last, PrivateRequest):
            require_question(last, task, request.parameters)
        if isinstance(last, PrivateRequest) and (ledger := open_ledger()) is not None:
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
        if self.orders is None or bounds:
            return "", nothing_said
        try:
            state, answer = self.orders.consider(request)
        except BoundError as error:
            bounds.append(error)
            return "", nothing_said
        return state, nothing_said if answer is None else np.frombuffer(answer.to_bytes(), np.uint8)


def and_room(check_run: CheckRun, most_bytes: int) -> CheckRun:
    """`check_run`, and that a message with the run's model is no longer than this node takes (`max_message_bytes`).

    Else such a message would be cut off on its way, again and again, and nobody at the agency would know why.
    """

    def check(request: RunRequest) -> list[BoundError]:
        bounds, size = check_run(request), 4 * request.parameters + BESIDE_BYTES
        if size > most_bytes:
            text = f"messages of {size} bytes are above client.max_message_bytes {most_bytes}"
            bounds.append(BoundError(text, "client.max_message_bytes"))
        return bounds

    return check


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
    received: ReceivedModels | None,
    last_trained: Callable[[str], TrainRequest | None],
    evidence: Evidence | None,
) -> Callable[[], ReleaseReply]:
    """The work of keeping a run's model beside the plan of its last request that was trained for here.

    Raises SovfedError where the request is not whole.
    """
    facts = facts_of_release(request, task)

    def keep() -> ReleaseReply:
        if received is not None:
            keep_released(received, task, request, facts, plan_of(last_trained(request.run)))
        if evidence is not None:
            evidence.received(request)
        return ReleaseReply()

    return keep


def keeping_table(
    request: ReleaseRequest,
    task: Task,
    received: ReceivedModels | None,
    sheets: KeptSheets | None,
    order: RunOrder | None,
    evidence: Evidence | None,
) -> Callable[[], ReleaseReply]:
    """The work of keeping a run's table, its noised sums and as it was signed.

    Raises SovfedError where the request is not whole, or the table is not of the run's `order`.
    """
    table = received_table(request, task) if request.statistics else None
    signed = sheets.check(request, order) if sheets is not None and request.table.size else b""

    def keep() -> ReleaseReply:
        if received is not None and table is not None:
            keep_table(received.folder, table)
        if sheets is not None and signed:
            sheets.keep(request.run, signed)
        if evidence is not None:
            evidence.received(request)
        return ReleaseReply()

    return keep
