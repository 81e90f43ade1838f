"""The end of a permit: what runs under it left in this home is erased, and a signed receipt says what remains."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import rfc8785

from sovfed.clients.models.received import FOLDER as RECEIVED
from sovfed.clients.orders.places import RECEIPTS
from sovfed.clients.statistics.scores import scores_of
from sovfed.federation.errors import IdentityError, OrderError, ServiceError
from sovfed.federation.files import write_private
from sovfed.federation.host.status import read_status
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.schema import bind, bounded, named
from sovfed.federation.secagg.files import FOLDER as SECAGG
from sovfed.federation.secagg.keys import check_signature, encode_fields, public_key
from sovfed.federation.secagg.request import run_bytes, run_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from sovfed.clients.orders.book import Bound, OrderBook
    from sovfed.federation.secagg.keys import Identity

REMAINS: Final = (
    "the privacy ledger and its heads: what was learnt stays learnt",
    "the secure-aggregation journal, without keys: which sums were answered",
    "the orders of the permit and this institution's answers to them",
    "models and tables that were released (received/), and the logs",
    "what the agency and other institutions hold",
)


@dataclass(frozen=True)
class Receipt:
    """What `institution` erased of a permit's runs; `erased` are files of its home, `certificate` (DER) is base64."""

    permit: str = named()
    institution: str = bounded(low=1, high=63)
    at: int = bounded(low=0, high=2**40)
    runs: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()
    remains: tuple[str, ...] = REMAINS
    certificate: str = bounded("", 0, 8192)
    signature: str = bounded("", 0, 128)

    @property
    def message(self) -> bytes:
        """What is signed: all but the signature."""
        values = asdict(replace(self, signature=""))
        return encode_fields("purge receipt", rfc8785.dumps({name: _plain(value) for name, value in values.items()}))

    def check(self) -> None:
        """Raise IdentityError unless the node whose certificate is shown signed this; who certified it is not asked."""
        certificate, signature = base64.b64decode(self.certificate), base64.b64decode(self.signature)
        check_signature(public_key(certificate), self.message, signature, "purge receipt")


def purge(
    home: Path, book: OrderBook, permit: str, identity: Identity, remove_personal: Callable[[str], int], now: float
) -> Receipt:
    """Erase what the runs under `permit` left, and write the receipt; no order under that permit is answered again.

    `remove_personal` deletes a run's personal models. Raises ServiceError while the node is up: its memory holds keys.
    """
    if read_status(home) is not None:
        raise ServiceError("the node is up, and holds keys in memory: `sovfed client down` first")
    bound = {run: entry for run, entry in book.runs().items() if entry.permit == permit}
    if not bound:
        raise OrderError(f"no run was ever answered here under permit '{permit[:64]}'")
    erased = [*_sessions(home, bound), *_personal(bound, remove_personal), *_scores(home, bound)]
    names = tuple(sorted({entry.name for entry in bound.values()}))
    institution = identity.verify(identity.certificate).institution
    certificate = base64.b64encode(identity.certificate).decode("ascii")
    receipt = Receipt(permit, institution, int(now), names, tuple(erased), certificate=certificate)
    receipt = replace(receipt, signature=base64.b64encode(identity.sign(receipt.message)).decode("ascii"))
    write_private(home / RECEIPTS / f"{permit}.json", json.dumps(asdict(receipt), indent=1).encode())
    tell(home, OrderEvent("purged", "", ", ".join(names)[:128], institution))
    return receipt


def read_receipt(path: Path) -> Receipt:
    """The receipt in `path`, its signature checked. Raises IdentityError."""
    try:
        values: Any = json.loads(path.read_bytes())
        receipt = bind(Receipt, values, str(path), IdentityError)
        receipt.check()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise IdentityError(f"{path}: not a receipt") from error
    return receipt


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


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
