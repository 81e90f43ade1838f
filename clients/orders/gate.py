"""The gate in the trainer: no message is answered that is not under an order which this institution has signed.

A run shows its order once, before anything else (`RunRequest`). From then on each of its messages is held to it:
the same task, settings, ring and cohort, no round beyond the last, not after the order or its permit has ended, and
only as often as the order's sums need. An officer who refuses later ends it with the next message.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sovfed import __version__
from sovfed.clients.orders.book import Bound
from sovfed.clients.orders.rules import STANDING
from sovfed.federation.errors import BoundError, IdentityError, OrderError
from sovfed.federation.messages import LedgerRequest, ReleaseRequest, SecaggRequest
from sovfed.federation.orders.answers import CONSENTED, SIGNED, WITHDRAWN, Answer
from sovfed.federation.orders.approving import signer_of
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.orders.order import read_proposal
from sovfed.federation.secagg import keys
from sovfed.federation.secagg.request import MAX_PARTS, run_parts, whole_run
from sovfed.federation.sums import FIRST, FORM, FORMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from sovfed.clients.orders.book import OrderBook
    from sovfed.clients.orders.rules import DataPermit, OrderRules
    from sovfed.federation.identity import SignerIdentity, Trust
    from sovfed.federation.messages import Request, RunRequest
    from sovfed.federation.orders.order import Proposal, RunOrder
    from sovfed.federation.secagg.keys import Identity
    from sovfed.federation.secagg.terms import Terms

log = logging.getLogger(__name__)
AWAITING: Final = "awaiting"
AHEAD: Final = 16  # messages are written down so many at a time, before they are answered: a crash forfeits some
UNCOUNTED: Final = (SecaggRequest, LedgerRequest, ReleaseRequest)  # nothing is computed from records for these


@dataclass
class _Open:
    """A run that is answered: its order, and how much of it was used."""

    order: RunOrder
    stamp: tuple[int, int, int] | None
    answered: dict[str, int]
    written: int
    consented: bool  # by the node: as long as the standing consent lasts
    settling: int = -1  # `total` at the last `settle`

    @property
    def total(self) -> int:
        return sum(self.answered.values())


class OrderGate:
    """The orders of one institution, as its trainer holds each message to them."""

    def __init__(
        self,
        book: OrderBook,
        rules: OrderRules,
        permits: Mapping[str, DataPermit],
        open_identity: Callable[[], Identity],
        open_trust: Callable[[], Trust],
        clock: Callable[[], float] = time.time,
        forms: Mapping[str, int] = FORMS,
    ) -> None:
        """`forms` are those of what this version adds up (`federation/sums.py`)."""
        self._forms = forms
        self._book, self._rules, self._permits, self._clock = book, rules, permits, clock
        self._open_identity, self._open_trust = open_identity, open_trust
        self._runs = book.runs()
        book.put_in_force(rules.keys)
        self._open: dict[str, _Open] = {}
        self._own = (b"", "")  # this institution's certificate and the name in it

    def consider(self, request: RunRequest) -> tuple[str, Answer | None]:
        """What the institution says to the order of a whole run, and its signed word if it gave one.

        Raises OrderError if there is none or it is for something else, BoundError if a rule of the policy forbids it.
        """
        if not request.order.size:
            raise OrderError(f"run {request.run} carries no order")
        proposal = read_proposal(request.order.tobytes())
        order = proposal.order
        self._check_proposer(proposal)
        self._check_form(order)
        if lacking := order.lacks(request):
            raise OrderError(f"run {request.run} is otherwise than its order in: {lacking}")
        self._check(order)
        self._rules.check_approvals([*self._approvers(proposal)])
        state, answer = self._word(order)
        if self._book.file(proposal, self._clock()):
            officer, key = (answer.officer, answer.key) if answer else ("", "")
            tell(self._book.home, OrderEvent(state, order.digest, order.run, officer, key))
        if state in (SIGNED, CONSENTED):
            self._bind(request.run, order, consented=state == CONSENTED)
        return state, answer

    def require(self, request: Request) -> None:
        """Raise OrderError unless `request` is under an order that the institution has signed and not taken back."""
        run = whole_run(request.run)
        if request.run not in run_parts(run):
            raise OrderError(f"'{request.run}' is no part of a run: RUN.2 to RUN.{MAX_PARTS} are")
        opened = self._open.get(run) or self._reopen(run)
        order = opened.order
        try:
            self._check_form(order)
            self._check(order)
        except BoundError as error:
            raise OrderError(str(error)) from error
        if (stamp := self._book.answer_stamp(order.digest)) != opened.stamp:
            opened.consented = self._require_word(order)
            opened.stamp = stamp
        if opened.consented and (reason := self._rules.standing.why_not(order, self._clock())):
            raise OrderError(f"the standing consent to order {order.digest[:12]} does not hold any more: {reason}")
        if forbidden := order.forbids(request):
            raise OrderError(f"run {run} asks otherwise than its order in: {forbidden}")
        if not isinstance(request, UNCOUNTED):
            self._count(run, opened, type(request).__name__.removesuffix("Request").lower())

    def order_of(self, run: str) -> RunOrder:
        """The order of `run`, which `require` has let through."""
        return self._open[whole_run(run)].order

    def settle(self) -> None:
        """Write down how much was answered and no more, of runs of which nothing was since the last call."""
        for run, opened in self._open.items():
            if opened.written > opened.total == opened.settling:
                self._runs[run] = replace(self._runs[run], answered=dict(opened.answered))
                self._book.write_runs(self._runs)
                opened.written = opened.total
            opened.settling = opened.total

    def narrowed(self, run: str, terms: Terms) -> Terms:
        """`terms` of secure aggregation for `run`, which `require` has let through, as narrow as its order."""
        opened = self._open.get(whole_run(run))
        return terms if opened is None else opened.order.narrowed(terms)

    def _check_proposer(self, proposal: Proposal) -> None:
        """Raise IdentityError unless the agency's server, as our root knows it, proposes this."""
        certificate, signature = proposal.server
        self._open_identity().verify_server(certificate)
        keys.check_signature(
            keys.public_key(certificate), proposal.order.proposal_message, signature, "agency's proposal"
        )

    def _check_form(self, order: RunOrder) -> None:
        """Raise BoundError if what the run adds up has another form here, as after an update of one side alone."""
        if order.form != (own := order.form_by(self._forms)):
            raise BoundError(
                f"its sums are of form '{order.form or FIRST}', those of sovfed {__version__} here of "
                f"'{own or FIRST}': one of both sides has to be updated",
                FORM,
            )

    def _approvers(self, proposal: Proposal) -> Iterator[SignerIdentity]:
        """The agency's people whose approval holds now. Raises IdentityError if one was changed, or is a stranger's."""
        for approval in proposal.approvals:
            signer = signer_of(approval, proposal.order, self._open_trust())
            if signer is not None:
                yield signer

    def _check(self, order: RunOrder) -> None:
        """Raise BoundError unless the order holds now, for this institution, and its permit allows it."""
        now = self._clock()
        self._rules.check_times(order, now)
        self._rules.check_purpose(order)
        if order.cohort and self._name() not in order.cohort:
            raise BoundError(f"the order is for {', '.join(order.cohort)}", "orders.cohort")
        if not order.permit:
            if self._rules.require_permit:
                raise BoundError("the order names no permit, and require_permit is true", "orders.require_permit")
            return
        permit = self._permits.get(order.permit)
        if permit is None:
            raise BoundError(f"permit {order.permit!r} is not in the policy's permits", "permits")
        if self._book.is_purged(order.permit):
            raise BoundError(f"permit {order.permit!r}: what was under it has been erased", "permits")
        if reason := permit.why_not(order, self._spent(order), now):
            raise BoundError(f"permit {order.permit!r}: {reason}", "permits")

    def _word(self, order: RunOrder) -> tuple[str, Answer | None]:
        """What an officer signed, else the consent given in advance, else that an officer is awaited.

        An answer that does not hold is none, and then nothing is consented to in its place.
        """
        try:
            answer = self._officer_answer(order)
        except IdentityError as error:
            log.warning("the answer to order %s does not hold: %s", order.digest[:12], error)
            return AWAITING, None
        if answer is not None:
            return answer.decision, answer if answer.is_of_node else answer.vouched_by(self._open_identity())
        if self._rules.mode != STANDING or order.task_digest in self._book.withdrawn_tasks():
            return AWAITING, None
        if reason := self._rules.standing.why_not(order, self._clock()):
            log.debug("order %s is not within the standing consent: %s", order.digest[:12], reason)
            return AWAITING, None
        return CONSENTED, self._consent(order)

    def _officer_answer(self, order: RunOrder) -> Answer | None:
        """The answer of an officer whom the policy names, or the node's that withdraws. Raises IdentityError."""
        answer = self._book.answer(order.digest)
        if answer is None:
            return None
        if (answer.order, answer.institution) != (order.digest, self._name()):
            raise IdentityError("it is for another order, or another institution's")
        if answer.is_of_node and answer.decision == WITHDRAWN:
            answer.check_node()  # whosoever's key it is: what it asks is that nothing be answered
            return answer
        if answer.officer not in self._rules.keys:
            raise IdentityError(f"{answer.officer!r} is not in the policy's officers")
        answer.check_officer(self._rules.keys[answer.officer])
        return answer

    def _consent(self, order: RunOrder) -> Answer:
        """The node's own word, which says that it is one."""
        consent = Answer(
            order.digest, self._name(), CONSENTED, reason="standing consent of policy.yaml", at=int(self._clock())
        ).by_node(self._open_identity())
        self._book.write_consent(consent)
        return consent

    def _require_word(self, order: RunOrder) -> bool:
        """Whether it is the node that consented. Raises OrderError if nobody did."""
        state, _ = self._word(order)
        if state not in (SIGNED, CONSENTED):
            raise OrderError(f"the order {order.digest[:12]} of run {order.run} is {state} here")
        return state == CONSENTED

    def _bind(self, run: str, order: RunOrder, *, consented: bool) -> None:
        """Answer `run` under `order` from now on, and no earlier run under it: a resumed run is another of Flower's.

        Raises OrderError if the run is under another order: what was answered under that one would be forgotten.
        """
        if run in self._runs and self._runs[run].order != order.digest:
            raise OrderError(f"run {run} is under order {self._runs[run].order[:12]} here, and can be under no other")
        names, answered = set[str](), dict[str, int]()
        for known in [known for known, bound in self._runs.items() if bound.order == order.digest]:
            opened, kept = self._open.pop(known, None), self._runs.pop(known)
            answered = opened.answered if opened else kept.answered
            names |= {known, *kept.earlier}
        earlier = tuple(sorted(names - {run}))
        self._runs[run] = Bound(order.digest, order.run, order.permit, order.epsilon, self._clock(), answered, earlier)
        self._book.write_runs(self._runs)
        self._open[run] = self._opened(order, answered, consented=consented)

    def _reopen(self, run: str) -> _Open:
        """The run after a restart, its order and the institution's word looked at anew. Raises OrderError."""
        bound = self._runs.get(run)
        if bound is None:
            raise OrderError(f"run {run} is under no order that was signed here")
        proposal = self._book.proposal(bound.order)
        if proposal is None:
            raise OrderError(f"the order {bound.order[:12]} of run {run} is not kept here any more")
        consented = self._require_word(proposal.order)
        try:
            self._rules.check_approvals([*self._approvers(proposal)])
        except BoundError as error:
            raise OrderError(str(error)) from error
        self._open[run] = self._opened(proposal.order, bound.answered, consented=consented)
        return self._open[run]

    def _opened(self, order: RunOrder, answered: Mapping[str, int], *, consented: bool) -> _Open:
        counts = dict(answered)
        return _Open(order, self._book.answer_stamp(order.digest), counts, sum(counts.values()), consented)

    def _count(self, run: str, opened: _Open, kind: str) -> None:
        """Count a message before it is answered. Raises OrderError beyond what the order can need."""
        most = opened.order.most_answers
        if opened.total >= most:
            raise OrderError(f"run {run} was answered {most} times, more than its order can need")
        opened.answered[kind] = opened.answered.get(kind, 0) + 1
        if opened.total > opened.written:
            opened.written = opened.total + AHEAD
            ahead = {**opened.answered, kind: opened.answered[kind] + AHEAD}
            self._runs[run] = replace(self._runs[run], answered=ahead)
            self._book.write_runs(self._runs)

    def _spent(self, order: RunOrder) -> float:
        """ε of the other orders under the permit of `order`."""
        others = {
            bound.order: bound.epsilon
            for bound in self._runs.values()
            if bound.permit == order.permit and bound.order != order.digest
        }
        return sum(others.values())

    def _name(self) -> str:
        identity = self._open_identity()
        if self._own[0] != identity.certificate:
            self._own = (identity.certificate, identity.verify(identity.certificate).institution)
        return self._own[1]
