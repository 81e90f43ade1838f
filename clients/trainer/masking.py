"""An institution's part in secure aggregation: it joins a run's roster, masks its sums, and helps to unmask totals.

The rules stand in `federation/secagg/`; here they meet the trainer's requests, the policy's terms and the disk. What
must be in the journal is there before the reply is returned.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

import numpy as np

from sovfed.federation.errors import IdentityError, PolicyError, PrivacyError, ProtocolError
from sovfed.federation.messages import (
    EvaluateReply,
    LedgerReply,
    LedgerRequest,
    MaskedReply,
    MaskedSum,
    PrivateReply,
    PrivateRequest,
    ProfileReply,
    SecaggReply,
    SecaggRequest,
    SumRequest,
    Sums,
    TrainReply,
    Vector,
)
from sovfed.federation.secagg import client, setup, wire
from sovfed.federation.secagg.history import Pinned
from sovfed.federation.secagg.keys import check_signature, countersigned_head, public_key, told_head
from sovfed.federation.secagg.opened import dated
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.request import (
    WIDEST,
    header_metrics,
    model_digest,
    purpose,
    run_bytes,
    subject,
    task_digest,
    update_size,
    widen,
)
from sovfed.federation.secagg.ring import metric_bound, saturated
from sovfed.federation.secagg.session import Session
from sovfed.federation.stored import Draft

if TYPE_CHECKING:
    from sovfed.federation.secagg.client import Masks, Permit
    from sovfed.federation.secagg.history import Entry, History
    from sovfed.federation.secagg.keys import Identity
    from sovfed.federation.secagg.mask import MakeDraft
    from sovfed.federation.secagg.ring import Integers
    from sovfed.federation.secagg.terms import Terms

log = logging.getLogger(__name__)
T = TypeVar("T")
V = TypeVar("V")
MAX_IDENTITIES: Final = 256  # runs that are signed for with the key that they were joined with
MAX_SETUPS: Final = 16  # runs that are set up at the same time; the oldest setup is dropped for the next
MAX_OWED: Final = 2  # runs whose rounding is kept, a vector each
LEAST_TOLD_S: Final = 2.0**-6
MOST_TOLD_S: Final = 2.0**17


@dataclass(frozen=True)
class PrivateUpdate:
    """What is private already: integers with a share of noise, or under `silo` a float update; shape [d]."""

    vector: Vector | Integers


Maskable: TypeAlias = ProfileReply | TrainReply | EvaluateReply | PrivateUpdate


class Store(Protocol):
    """Where the journal and the sessions are: `federation/secagg/files.py`."""

    @property
    def history(self) -> History: ...

    def commit(self, entries: Iterable[Entry]) -> None: ...

    def save_session(self, run: bytes, session: bytes) -> None: ...

    def load_session(self, run: bytes) -> bytes | None: ...


class Masking:
    """All runs of one institution. `open_identity` is called when it is needed, `open_store` with the first request."""

    def __init__(
        self,
        open_identity: Callable[[], Identity],
        open_store: Callable[[], Store],
        terms: Terms,
        clock: Callable[[], float] = time.time,
        narrowed: Callable[[str, Terms], Terms] = lambda _run, terms: terms,
        draft: MakeDraft = Draft,
    ) -> None:
        """`narrowed` says which of the terms are left for a run, under the order that it was signed.

        `draft` makes room for a masked update.
        """
        self._open_identity, self._open_store, self._terms, self._clock = open_identity, open_store, terms, clock
        self._narrowed, self._draft = narrowed, draft
        self._store: Store | None = None
        self._identities: dict[bytes, Identity] = {}  # by run: a renewed key signs for the next run, not for this one
        self._setups: dict[bytes, setup.Joining | setup.Pairing] = {}  # by run; the newest last
        self._sessions: dict[bytes, Session] = {}
        self._agreed: tuple[Permit, Masks] | None = None  # one sum at a time
        self._owed: dict[bytes, Vector] = {}  # by run: what a coarse ring's rounding took from the last update

    def answer(self, request: SecaggRequest) -> SecaggReply:
        """The reply to a step of the setup, or to M3. Raises SovfedError, and then nothing is given out."""
        run, body = run_bytes(request.run), request.body.tobytes()
        terms = self._narrowed(request.run, self._terms)
        try:
            match request.step:
                case "offer":
                    reply = self._join(run, body, terms)
                case "roster":
                    reply = self._encapsulate(run, body, terms)
                case "capsules":
                    pairing, reply = setup.confirm(self._begun(run, setup.Pairing), body)
                    self._setups[run] = pairing
                case "confirmations":
                    reply = self._finish(run, body, request.run)
                case _:
                    reply = self._reveal(run, body, terms)
        except (wire.PeerError, wire.ShareError) as error:
            # A bare refusal would have this institution left out in the other's place.
            log.warning("run %s, secure aggregation: %s", request.run, error)
            reply = error.complaint.encode()
        return SecaggReply(step=request.step, body=np.frombuffer(reply, np.uint8))

    def check_countersignature(self, request: LedgerRequest) -> None:
        """Raises IdentityError unless a coordinator that our root names signed the request's head for its run."""
        identity = self._open()[0]
        certificate, head = request.certificate.tobytes(), request.head.tobytes()
        identity.verify_server(certificate)
        message = countersigned_head(request.run, request.seq, head)
        check_signature(public_key(certificate), message, request.signature.tobytes(), "coordinator's countersignature")

    def told(self, request: LedgerRequest) -> bool:
        """Whether the request's head is one that this institution itself has told, and so had."""
        identity, _ = self._open()
        message = told_head(request.seq, request.head.tobytes())
        for certificate in (identity.certificate, *identity.former):
            with contextlib.suppress(IdentityError):
                check_signature(public_key(certificate), message, request.own.tobytes(), "our own signature")
                return True
        return False

    def tell(self, seq: int, head: bytes) -> LedgerReply:
        """That entry `seq` of the privacy ledger has `head`, signed by the institution."""
        identity, _ = self._open()
        return LedgerReply(
            seq=seq, head=np.frombuffer(head, np.uint8), certificate=np.frombuffer(identity.certificate, np.uint8),
            signature=np.frombuffer(identity.sign(told_head(seq, head)), np.uint8),
        )  # fmt: skip

    def permit(self, request: SumRequest, width: int) -> Permit:
        """Agree to the round that `request.begin` (M1) opens, before any work is done for it; `width` as of its sums.

        The masks are made while that work is done. A permit given earlier is void from now on.
        """
        self.forget()
        identity, store = self._open()
        session = self._session(run_bytes(request.run), identity, store)
        permit = client.begin(
            session, store.history, self._narrowed(request.run, self._terms), request.begin.tobytes(),
            model_digest(request), task_digest(request), subject(request), self._clock(),
        )  # fmt: skip
        if permit.begin.purpose != purpose(request):
            raise ProtocolError(f"the round is to {Purpose(permit.begin.purpose).name}, the request is another")
        if permit.begin.size != update_size(request):  # or its masks would fill the memory
            raise ProtocolError(f"the round is over {permit.begin.size} values, the request for {update_size(request)}")
        if permit.begin.metrics != (expected := header_metrics(request, width)):
            raise ProtocolError(f"the round is over {permit.begin.metrics} metrics, the request for {expected}")
        masks = client.prepare(session, permit, os.urandom, self._draft)
        self._agreed = (permit, masks)
        masks.sums.start()
        return permit

    def forget(self) -> None:
        """Drop the masks of a sum that was agreed to and not masked, and its permit with them."""
        agreed, self._agreed = self._agreed, None
        if agreed is not None:
            agreed[1].drop()

    def mask(
        self, run: str, permit: Permit, reply: Maskable, seconds: Callable[[], float], spoilt: bool = False
    ) -> MaskedSum:
        """`reply` masked: update, record count and metrics become part of sums that only a quorum can open.

        No value in `reply` makes this fail. An update that is not finite counts as none; metrics are cut to what the
        header holds, the count to W_max. That it was so, or that the work was `spoilt` before, is one more summand, so
        that the coordinator learns how many of the cohort it happened to. A private reply has neither that nor
        `seconds` of computing. In a coarse ring, what rounding takes from an update is added to the run's next one.
        Raises PrivacyError unless `permit` is the last one given, and unused.
        """
        agreed = self._agreed
        if agreed is None or agreed[0] is not permit:
            raise PrivacyError("this permit was used already, or is not the last one given")
        identity, store = self._open(run_bytes(run))
        session = self._session(run_bytes(run), identity, store)
        update: Vector | Integers = np.zeros(0, np.float32)
        weight, metrics, owed = 0, np.zeros(0), None
        match reply:
            case PrivateUpdate():  # no count and no metric: they would not be private
                update = reply.vector
                weight = 1 if update.dtype == np.int32 else session.roster.offer.max_weight
            case ProfileReply():
                metrics = widen(saturated(reply.sums, WIDEST))
                spoilt |= not _within(reply.sums, WIDEST)
            case TrainReply():
                most = session.roster.offer.max_weight
                weight = min(max(reply.count, 1), most)
                coarse = session.roster.ring(permit.begin).settles(weight)
                owed, update = self._with_owed(run_bytes(run), reply.update) if coarse else (None, reply.update)
                if reply.count > most:
                    log.warning("%d training records count as secagg.max_weight %d of this run", reply.count, most)
                fitted = fit(update, session.roster.offer.clip)
                if fitted is None:
                    fitted, spoilt = (np.zeros_like(update), 0), True
                update, cut = fitted
                metrics = np.concatenate([[reply.train_loss * weight, reply.steps * weight, cut], reply.evaluation])
            case EvaluateReply():
                metrics = reply.evaluation
        if not isinstance(reply, PrivateUpdate):
            spoilt |= not _within(metrics, metric_bound(session.roster.offer.fraction_bits))
            metrics = np.concatenate([[float(spoilt)], metrics])
        upload, entry = client.mask(
            session, permit, update, weight, metrics.tolist(), identity.sign, os.urandom, agreed[1], owed
        )
        self._agreed = None
        if isinstance(reply, TrainReply) and store.history.pinned is None:
            offer = session.roster.offer
            store.commit([Pinned(entry.subject, offer.clip, offer.max_weight)])
        store.commit([*dated(store.history, entry.purpose, entry.run, self._clock()), entry])
        message = np.frombuffer(upload.message, np.uint8)
        if isinstance(reply, PrivateUpdate):
            return PrivateReply(message=message, payload=upload.payload)
        return MaskedReply(seconds=told_seconds(seconds()), message=message, payload=upload.payload)

    def _with_owed(self, run: bytes, update: Vector) -> tuple[Vector, Vector]:
        """Where what rounding takes will be kept, and `update` with what it took from the last one.

        It waits through rounds that this institution misses, and ends with this process: less than a step a value.
        """
        earlier, owed = self._owed.get(run), np.zeros_like(update)
        _keep_newest(self._owed, run, owed, MAX_OWED)
        return owed, update if earlier is None or earlier.shape != update.shape else update + earlier

    def room(self, request: PrivateRequest, permit: Permit) -> int:
        """The largest integer of one member in the round's ring.

        Raises PolicyError if the request counts on noise of more institutions than this one's terms let it: those of
        the smallest cohort, less the colluders that they fear.
        """
        identity, store = self._open()
        roster = self._session(run_bytes(request.run), identity, store).roster
        most = roster.offer.min_cohort - self._terms.colluders
        if request.honest > most:
            raise PolicyError(
                f"the run counts on the noise of {request.honest} institutions; of a cohort of "
                f"{roster.offer.min_cohort}, {self._terms.colluders} are feared to collude: at most {most}"
            )
        return roster.ring(permit.begin).half - 2

    def _open(self, run: bytes = b"") -> tuple[Identity, Store]:
        """The store, and the identity that `run` was joined with; else the one that is in place now."""
        if self._store is None:
            self._store = self._open_store()
        return self._identities.get(run) or self._open_identity(), self._store

    def _join(self, run: bytes, body: bytes, terms: Terms) -> bytes:
        identity, store = self._open()
        joining, reply = setup.join(body, identity, terms, store.history, self._clock(), os.urandom)
        if wire.Offer.decode(joining.offer).run != run:
            raise ProtocolError("the offer is for another run than the request")
        _keep_newest(self._setups, run, joining, MAX_SETUPS)
        _keep_newest(self._identities, run, identity, MAX_IDENTITIES)
        return reply

    def _encapsulate(self, run: bytes, body: bytes, terms: Terms) -> bytes:
        identity, _ = self._open(run)
        joining = self._begun(run, setup.Joining)
        self._setups[run], reply = setup.encapsulate(joining, body, identity, terms, self._clock())
        return reply

    def _finish(self, run: bytes, body: bytes, title: str) -> bytes:
        _, store = self._open()
        session, entry = setup.finish(self._begun(run, setup.Pairing), body, os.urandom, title)
        setup.check_epoch(session.roster.offer, store.history)
        store.save_session(run, session.encode())
        store.commit([entry])
        del self._setups[run]
        self._sessions = {**self._sessions, run: session}
        names = session.roster.names
        log.info("secure aggregation with %s; %d of them unmask a sum", ", ".join(names), session.roster.threshold)
        return b""

    def _begun(self, run: bytes, stage: type[T]) -> T:
        """The setup of `run`, which must be at `stage`."""
        begun = self._setups.get(run)
        if not isinstance(begun, stage):
            raise ProtocolError("a step of a setup that this institution has not begun, or not so far")
        return begun

    def _reveal(self, run: bytes, body: bytes, terms: Terms) -> bytes:
        identity, store = self._open(run)
        session = self._session(run, identity, store)
        reply, entries = client.reveal(session, store.history, terms, body, identity.sign, self._clock())
        store.commit(entries)
        self._tell(store.history, entries)
        return reply

    def _tell(self, history: History, entries: Iterable[Entry]) -> None:
        """Log a sum whose difference from an earlier one tells of few institutions."""
        if history.near and history.near[-1][0] in entries:
            log.warning("%s; only differential privacy hides what that tells", history.describe_near(*history.near[-1]))

    def _session(self, run: bytes, identity: Identity, store: Store) -> Session:
        """The session of `run`, from the disk after a restart; its members' certificates are then verified anew."""
        session = self._sessions.get(run)
        if session is None:
            stored = store.load_session(run)
            if stored is None:
                raise ProtocolError("this institution has not joined the run's secure aggregation")
            session = Session.decode(stored, identity.verify, self._clock())
        if session.roster.offer.epoch != store.history.epoch(run):  # also of a run that the journal has since closed
            raise PrivacyError("the stored session is not the one that the journal names")
        self._sessions[run] = session
        return session


def _keep_newest(by_run: dict[bytes, V], run: bytes, value: V, most: int) -> None:
    """Give `run` its `value` as the newest, and forget the oldest of more than `most`."""
    by_run.pop(run, None)
    by_run[run] = value
    if len(by_run) > most:
        del by_run[next(iter(by_run))]


def told_seconds(seconds: float) -> float:
    """`seconds` of computing as they are told: rounded up to a power of two, at least 1/64 s and at most a day.

    What they would tell of the number of records is then less than what the reply's arrival tells anyway.
    """
    if not seconds > LEAST_TOLD_S:
        return LEAST_TOLD_S
    return min(2.0 ** math.ceil(math.log2(seconds)), MOST_TOLD_S)


def fit(update: Vector, clip: float) -> tuple[Vector, int] | None:
    """`update`, shrunk as a whole where a value is beyond `clip`, and how many were; None if one is not finite.

    Cut one by one they would tell, from a single sum, on which side of zero each value of each institution is.
    """
    if not update.size:
        return update, 0
    largest = max(float(update.max()), -float(update.min()))  # NaN if any value is
    if not math.isfinite(largest):
        return None
    if largest <= clip:
        return update, 0
    return update * np.float32(clip / largest), int(np.count_nonzero(np.abs(update) > clip))


def _within(values: Sums, bound: float) -> bool:
    """Whether all of `values` are finite and at most `bound` in size."""
    return bool((np.abs(values) <= bound).all())
