"""The end of a permit: what runs under it left in this home is erased, and a signed receipt says what remains."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from sovfed.clients.models.received import FOLDER as RECEIVED
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.places import RECEIPTS
from sovfed.clients.statistics.scores import scores_of
from sovfed.clients.training.halfway import FILE as HALFWAY
from sovfed.clients.training.personal import FOLDER as PERSONAL
from sovfed.federation.errors import OrderError, ServiceError
from sovfed.federation.evidence.retention import cosigned
from sovfed.federation.evidence.store import LogReader, has_log
from sovfed.federation.files import drafts, write_private
from sovfed.federation.host.status import supervising
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.orders.receipts import Receipt
from sovfed.federation.secagg.files import FOLDER as SECAGG
from sovfed.federation.secagg.request import run_bytes, run_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from sovfed.clients.orders.book import Bound
    from sovfed.clients.orders.rules import DataPermit
    from sovfed.federation.secagg.keys import Identity

AWAY_S: Final = 31 * 86_400.0  # a node that was off for longer purges nothing by itself


def purge(
    home: Path, book: OrderBook, permit: str, identity: Identity, remove_personal: Callable[[str], int], now: float
) -> Receipt:
    """Erase what the runs under `permit` left, and write the receipt; no order under that permit is answered again.

    `remove_personal` deletes a run's personal models. Raises ServiceError while the node is up: its memory holds keys;
    and it comes up only once all is erased.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(supervising(home, patience_s=0.5))
        except ServiceError as error:
            raise ServiceError("the node is up, and holds keys in memory: `sovfed client down` first") from error
        return _purged(home, book, permit, identity, remove_personal, now)


def _purged(
    home: Path, book: OrderBook, permit: str, identity: Identity, remove_personal: Callable[[str], int], now: float
) -> Receipt:
    bound = {run: entry for run, entry in book.runs().items() if entry.permit == permit}
    if not bound:
        raise OrderError(f"no run was ever answered here under permit '{permit[:64]}'")
    erased = [
        *_sessions(home, bound), *_personal(bound, remove_personal), *_scores(home, bound), *_unfinished(home)
    ]  # fmt: skip
    names = tuple(sorted({entry.name for entry in bound.values()}))
    institution = identity.verify(identity.certificate).institution
    receipt = Receipt(permit, institution, int(now), names, tuple(erased)).signed(identity)
    write_private(home / RECEIPTS / f"{permit}.json", json.dumps(asdict(receipt), indent=1).encode())
    tell(home, OrderEvent("purged", "", ", ".join(names)[:128], institution))
    return receipt


def ended(book: OrderBook, permits: Mapping[str, DataPermit], now: float) -> list[str]:
    """Which of `permits` have ended with something of their runs still here, sorted."""
    bound = {entry.permit for entry in book.runs().values()} & permits.keys()
    return sorted(name for name in bound if now > permits[name].ends and not book.is_purged(name))


def unpurged(book: OrderBook, permits: Mapping[str, DataPermit], now: float) -> Iterator[str]:
    """The same for people, with how it is erased."""
    for name in ended(book, permits, now):
        yield f"permit {name} ended on {permits[name].expires}: `sovfed client purge {name}` erases what it left"


def purge_ended(home: Path, permits: Mapping[str, DataPermit], now: float) -> list[Receipt]:
    """Erase what the runs under each of `permits` that has ended left here, as `purge` does; the receipts.

    Nothing where the last entry of the home's log is of more than AWAY_S ago, or a permit had not ended by the clock of
    whoever cosigned the log last, or nobody has: it was off for long, or its clock is wrong, and a person looks first.
    Raises as `purge`.
    """
    from sovfed.clients.training.personal import PersonalStates
    from sovfed.federation.secagg.files import load_identity

    book = OrderBook(home).make()
    names = ended(book, permits, now)
    last = next(LogReader(home).newest(), None) if names and has_log(home) else None
    if last is None or not 0 <= now - float(last["at"]) <= AWAY_S:
        return []
    _, seen = cosigned(home)
    old = [name for name in names if seen > permits[name].ends]
    remove = PersonalStates(home / PERSONAL).remove
    return [purge(home, book, name, load_identity(home / "identity"), remove, now) for name in old]


def _sessions(home: Path, bound: Mapping[str, Bound]) -> Iterator[str]:
    """Delete the keys of the runs' secure aggregation; each file's name."""
    runs = [known for run, entry in bound.items() for known in (run, *entry.earlier)]
    for part in (part for run in runs for part in run_parts(run)):
        path = home / SECAGG / f"{run_bytes(part).hex()}.session"
        if path.exists():
            path.unlink()
            yield str(path.relative_to(home))


def _personal(bound: Mapping[str, Bound], remove: Callable[[str], int]) -> Iterator[str]:
    """Delete the runs' personal models and variates."""
    for name in sorted({entry.name for entry in bound.values()}):
        if count := remove(name):
            yield f"personal/ of run {name}: {count} files"


def _scores(home: Path, bound: Mapping[str, Bound]) -> Iterator[str]:
    """Delete what candidates were worth on the own records, exact figures; each file's name."""
    for run, entry in bound.items():
        for known in (run, *entry.earlier):
            path = scores_of(home / RECEIVED, entry.name, known)
            if path.exists():
                path.unlink()
                yield str(path.relative_to(home))


def _unfinished(home: Path) -> Iterator[str]:
    """Delete what no trainer ended, whosever it is: the state of a round, which begins anew, and files half written."""
    state = home / HALFWAY
    folders = (home / SECAGG, home / PERSONAL, home / RECEIVED, state.parent)
    for path in (*([state] if state.exists() else ()), *(draft for folder in folders for draft in drafts(folder))):
        path.unlink()
        yield str(path.relative_to(home))
