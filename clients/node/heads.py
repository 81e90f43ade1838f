"""The institution's half of the exchange of heads: it shows its log, and cosigns the agency's where that goes on.

What other institutions have cosigned of the agency's log must be the beginning of what is shown here. If it is not, the
agency shows two logs, and the head that somebody else has cosigned proves it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from sovfed.clients.node.agency import ask, mutual_channel
from sovfed.clients.node.enrol import lane_of
from sovfed.federation.errors import EvidenceError, IdentityError, SovfedError
from sovfed.federation.evidence import merkle
from sovfed.federation.evidence.keys import AGENCY, INSTITUTION, Voucher, read_voucher
from sovfed.federation.evidence.notes import Checkpoint, check_cosignature, check_note, read_checkpoint
from sovfed.federation.evidence.store import LogReader, has_log
from sovfed.federation.evidence.witness import (
    SplitError,
    all_seen,
    keep_cosignature,
    keep_others,
    note_split,
    others,
    seen,
    watch,
)
from sovfed.federation.identity import load_roots
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import REGISTRY_SERVICE

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence
    from pathlib import Path

    import grpc
    from cryptography import x509

log = logging.getLogger(__name__)
MOST_S: Final = 10.0  # between exchanges without a round: what ends a run is logged after its last message
AGAIN_S: Final = 10.0  # after one that failed
LOOK_S: Final = 1.0


class Exchange:
    """The exchange of heads between the institution in `home` and the agency, as long as it lasts."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._old = 0  # how many entries of our log the agency says that it has seen
        self._cosigned = b""
        self._shown = b""
        self._seen = 0  # how many entries of the agency's log we had seen when we asked
        self._told = ""

    def once(self, channel: grpc.Channel) -> None:
        """Show and cosign what is new, until there is nothing. Raises SovfedError; SplitError where a log changed."""
        for _ in range(3):
            try:
                reply = ask(channel, f"/{REGISTRY_SERVICE}/Heads", self._request(), pb.HeadsReply, "exchange of heads")
            except IdentityError:  # it would be refused for ever, and so nothing be seen of the agency's log any more
                self._cosigned = b""
                raise
            if not self._take(reply):
                return

    def _request(self) -> pb.HeadsRequest:
        own, before = LogReader(self._home, writable=False), self._agency()
        self._seen = before.size if before else 0
        self._shown = own.head()
        size = read_checkpoint(self._shown).size
        if self._old > size:
            log.error("the agency has seen %d entries of this log, which has %d: it was rolled back", self._old, size)
        proof = own.consistency(self._old, size) if self._old <= size else ()
        return pb.HeadsRequest(
            keys=own.voucher.to_bytes(), head=self._shown, proof=proof, old=self._old, cosigned=self._cosigned,
            seen=self._seen,
        )  # fmt: skip

    def _take(self, reply: pb.HeadsReply) -> bool:
        """Keep what `reply` brings; whether there is more to say."""
        asked_again, self._cosigned = reply.old != self._old and not reply.cosigned, b""
        if reply.problem:
            log.error("the agency does not cosign this institution's log: %s", reply.problem)
        if not reply.head:
            return asked_again
        roots = load_roots(self._home / "identity" / "root.pem")
        voucher, before = read_voucher(reply.keys), self._agency()
        self._require_the_agency(voucher, roots)
        if before is not None and before.size != self._seen:
            return True  # its proof begins elsewhere: another of our processes has been told more meanwhile
        cosigned = watch(self._home, voucher, reply.head, tuple(reply.proof))
        head = read_checkpoint(reply.head)
        known = {note for _, note in others(self._home)}  # of which this log is known to go on from
        fresh = [other for other in reply.others if other.note not in known]
        keep_others(self._home, [pair for other in fresh if (pair := self._judged(other, voucher, head, roots))])
        if reply.cosigned.startswith(self._shown):
            keep_cosignature(self._home, voucher, LogReader(self._home, writable=False).voucher, reply.cosigned)
            self._old = read_checkpoint(self._shown).size
        elif not reply.problem:
            self._old = reply.old
        if before is None or before != head:
            self._cosigned = cosigned
        return bool(self._cosigned) or asked_again

    def _agency(self) -> Checkpoint | None:
        """The newest head that was seen of the agency's log."""
        return next((entry.head for entry in all_seen(self._home) if entry.head.origin.startswith(AGENCY)), None)

    def _require_the_agency(self, voucher: Voucher, roots: Sequence[x509.Certificate]) -> None:
        """Raises EvidenceError unless the log is the agency's, and SplitError if another agency's was seen before."""
        origin, before = voucher.check(roots), self._agency()
        if not origin.startswith(AGENCY):
            raise EvidenceError(f"the agency showed the log of {origin}")
        if before is not None and before.origin != origin:
            known = seen(self._home, before.origin)
            why = f"log {before.origin}: the agency shows another now, {origin}"
            note_split(self._home, before.origin, why, known.note if known else b"")
            raise SplitError(why)

    def _judged(
        self, other: pb.CosignedHead, agency: Voucher, head: Checkpoint, roots: Sequence[x509.Certificate]
    ) -> tuple[Voucher, bytes] | None:
        """`_compared`, or None for what cannot be read: one institution's keys keep no other from the exchange."""
        try:
            return self._compared(other, agency, head, roots)
        except SplitError:
            raise
        except SovfedError as error:
            if str(error) != self._told:
                log.warning("what another institution has cosigned counts for nothing: %s", error)
            self._told = str(error)
            return None

    def _compared(
        self, other: pb.CosignedHead, agency: Voucher, head: Checkpoint, roots: Sequence[x509.Certificate]
    ) -> tuple[Voucher, bytes]:
        """Who has cosigned which head of the agency's log.

        Raises SplitError if that is no beginning of what is shown here.
        """
        voucher = read_voucher(other.keys)
        if not voucher.check(roots).startswith(INSTITUTION):
            raise EvidenceError(f"{voucher.origin} is no institution")
        shown = check_note(other.note, agency.log_key)
        check_cosignature(other.note, voucher.witness_key)
        if not merkle.consistent(shown.size, shown.root, head.size, head.root, tuple(other.proof)):
            why = (
                f"log {head.origin}: {voucher.origin} has cosigned {shown.size} entries that are others than shown here"
            )
            note_split(self._home, head.origin, why, other.note)
            raise SplitError(why)
        return voucher, other.note


def keep_exchanging(
    home: Path, least_s: float, stop: threading.Event, wake: threading.Event, proxy: str | None = None,
    lane: str | None = None,
) -> None:  # fmt: skip
    """Exchange heads after each round, `least_s` apart at least, and every ten seconds without any, until `stop`."""
    exchange, address, said = Exchange(home), lane_of(home, lane), ""
    while not stop.is_set():
        try:
            with mutual_channel(home, address, proxy) as channel:
                while not stop.is_set():
                    if has_log(home):
                        exchange.once(channel)
                    said = ""
                    _pause(least_s, stop, wake)
        except Exception as error:  # of whatever kind: no answer of the agency's ends the watch over its log
            if str(error) != said:
                said = str(error)
                expected = isinstance(error, SovfedError | OSError)
                log.warning("heads were not exchanged: %s", error, exc_info=not expected)
            stop.wait(max(AGAIN_S, least_s))


def _pause(least_s: float, stop: threading.Event, wake: threading.Event) -> None:
    """Wait until there was a round, and `least_s`, so that several share an exchange."""
    begun = time.monotonic()
    stop.wait(least_s)
    while not stop.is_set() and not wake.is_set() and time.monotonic() - begun < MOST_S:
        stop.wait(LOOK_S)
    wake.clear()
