"""Whether a release says of this institution what its own books say: what it signed, and in which rounds it took part.

An agency that left a refusal out of its log, or wrote an institution into a round that it never answered, shows here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.clients.models.received import FOLDER, ReceivedModels
from sovfed.clients.orders.book import OrderBook
from sovfed.federation.evidence.keys import AGENCY, INSTITUTION, own_origin
from sovfed.federation.evidence.retention import DAY_S, retired_by
from sovfed.federation.evidence.store import LogReader, has_log
from sovfed.federation.evidence.witness import seen
from sovfed.federation.secagg.request import whole_run
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from sovfed.federation.release.checking import Verdict
    from sovfed.federation.release.lineage import Lineage

ASKED = ("train", "private")  # requests of the rounds that the agency's log tells of


def differences(home: Path, verdict: Verdict) -> list[str]:
    """What the release says of the institution in `home` otherwise than its own books, in plain words."""
    name = own_origin(home).removeprefix(INSTITUTION)
    said = [
        *_words(OrderBook(home), verdict, name),
        *_rounds(home, verdict.log, name),
        *_log(home, verdict.log, name),
        *_model(home, verdict),
    ]
    return [visible(line) for line in said]


def _words(book: OrderBook, verdict: Verdict, name: str) -> Iterator[str]:
    """An order to which this institution has said something else than the agency's log has."""
    if not verdict.predicate["orders"]:
        for proposal, own in book.words():
            if own is not None and proposal.order.run == verdict.predicate["run"]["name"]:
                yield f"{name} has '{own.decision}' to order {proposal.order.digest[:12]}, and the release has no order"
    for order in verdict.predicate["orders"]:
        own = book.word(order["sha256"])
        noted = [entry for entry in verdict.log.of_kind("order") if entry["event"] == "answered"]
        told = [entry["said"] for entry in noted if entry["order"] == order["sha256"]]
        if own is None:
            continue
        last = told[-1] if told else {}
        decisions = [decision for decision, names in last.items() if isinstance(names, list) and name in names]
        counted = any(not isinstance(names, list) for names in last.values())  # too many to be named
        if own.decision not in decisions and not counted:
            other = f"'{decisions[0]}'" if decisions else "nothing"
            yield f"{name} has '{own.decision}' to order {order['sha256'][:12]}, and the agency's log says {other}"


def _rounds(home: Path, log: Lineage, name: str) -> Iterator[str]:
    """A round in which the agency says this institution took part, and of which its own log has nothing."""
    own = {(whole_run(entry["run"]), entry["round"]) for entry in _own(home) if entry["request"] in ASKED}
    kept = max((retired.before for retired in retired_by(LogReader(home))), default=0) if has_log(home) else 0
    for entry in log.of_kind("round"):
        took_part = isinstance(entry["participants"], list) and name in entry["participants"]
        if not took_part or (entry["run"], entry["round"]) in own:
            continue
        if entry["at"] < kept + DAY_S:  # by the agency's clock
            yield f"round {entry['round']} is older than what this institution's own log still says: not to be compared"
        else:
            yield f"the agency's log has {name} in round {entry['round']}, and this institution's own log has not"


def _log(home: Path, log: Lineage, name: str) -> Iterator[str]:
    """A log that is not shown to go on from what this institution has seen of it."""
    known, own = seen(home, AGENCY + log.origin), log.cosigned.get(name, 0)
    if known is None:
        return
    head, where = known.head, f"{name} has seen {known.head.size} entries of the agency's log"
    if not own:
        yield f"{where}, and the release has no cosignature by it"
    elif head.size == log.size and head.root != log.root:
        yield f"{where}, and those of the release are others"
    elif own < min(head.size, log.size) and not log.whole:
        yield f"{where}; of the {log.size} in the release {own} are shown to be among them: it is to be made anew"


def _model(home: Path, verdict: Verdict) -> Iterator[str]:
    """Another model than the one that the agency sent to this institution when the run ended."""
    released, run = verdict.predicate["model"]["sha256"], verdict.log.of_kind("model")[-1]["run"]
    for kept in ReceivedModels(home / FOLDER).list() if (home / FOLDER).is_dir() else ():
        if whole_run(kept.owner) == run and kept.published not in ("", released):
            yield f"run {kept.run} has sent the model {kept.published[:12]} here, and the release has {released[:12]}"


def _own(home: Path) -> Iterator[dict[str, Any]]:
    if has_log(home):
        yield from (entry for entry in LogReader(home).newest() if entry["kind"] == "round")
