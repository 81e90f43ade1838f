"""The agency's half of the exchange of heads: it cosigns the institution's log, and shows its own."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from sovfed.federation.errors import EvidenceError
from sovfed.federation.evidence.keys import INSTITUTION, read_voucher
from sovfed.federation.evidence.notes import read_checkpoint
from sovfed.federation.evidence.store import LogReader, has_log, record
from sovfed.federation.evidence.witness import SplitError, cosignatures, keep_cosignature, seen, trusting, watch
from sovfed.federation.identity import load_roots
from sovfed.federation.wire import enrolment_pb2 as pb

log = logging.getLogger(__name__)
OTHERS: Final = 64  # heads that other institutions have cosigned, the newest


class Heads:
    """The log of the agency in `home`, and what it has seen of those of institutions."""

    def __init__(self, home: Path) -> None:
        self._home, self._lock = home, threading.Lock()

    def answer(self, institution: str, request: pb.HeadsRequest) -> pb.HeadsReply:
        """What `institution` is told for its head, and what it has cosigned is kept. Raises IdentityError."""
        voucher = read_voucher(request.keys)
        if voucher.check(load_roots(self._home / "identity" / "root.pem")) != INSTITUTION + institution:
            raise EvidenceError(f"{institution}: showed the log of {voucher.origin}")
        with self._lock:
            own = LogReader(self._home, writable=False) if has_log(self._home) else None
            if own is not None and request.cosigned:
                self._keep(own, request)
            reply = pb.HeadsReply() if own is None else self._own(own, request.seen, voucher.origin)
            if request.head:
                self._cosign(reply, request, institution)
            return reply

    def _keep(self, own: LogReader, request: pb.HeadsRequest) -> None:
        head = read_checkpoint(request.cosigned)
        if not request.cosigned.startswith(own.head(head.size)):
            raise EvidenceError(f"a cosignature of a head of {head.size} entries that this log never had")
        keep_cosignature(self._home, read_voucher(request.keys), own.voucher, request.cosigned)

    def _cosign(self, reply: pb.HeadsReply, request: pb.HeadsRequest, institution: str) -> None:
        voucher = read_voucher(request.keys)
        before = seen(self._home, voucher.origin)
        reply.old = before.head.size if before else 0
        if before is not None and request.old != reply.old:
            return  # it is asked again, with the proof that is needed, and what was under way meanwhile is no rollback
        try:
            reply.cosigned = watch(self._home, voucher, request.head, tuple(request.proof))
        except SplitError as error:
            record(self._home, "split", log=voucher.origin, why=str(error))
            log.warning("%s; not cosigned before %s, as when its home was restored", error, trusting(voucher.origin))
            reply.problem = str(error)
        except EvidenceError as error:
            reply.problem = str(error)

    def _own(self, own: LogReader, known: int, asking: str) -> pb.HeadsReply:
        note = own.head()
        size = read_checkpoint(note).size
        if known > size:
            log.error(
                "%s says that it has seen %d entries of this agency's log, which has %d: where this home was restored "
                "from a copy, institutions answer no run before each operator has typed %s",
                asking, known, size, trusting(own.voucher.origin),
            )  # fmt: skip
        proof = own.consistency(known, size) if known <= size else ()
        reply = pb.HeadsReply(keys=own.voucher.to_bytes(), head=note, proof=proof)
        for voucher, cosigned in cosignatures(self._home)[:OTHERS]:
            if voucher.origin != asking and (old := read_checkpoint(cosigned).size) <= size:
                reply.others.add(keys=voucher.to_bytes(), note=cosigned, proof=own.consistency(old, size))
        return reply
