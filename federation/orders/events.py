"""The one place that each event of an order passes, at either side: a line on standard error, an entry of the log."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.federation.evidence.store import record
from sovfed.federation.schema import bounded, choice
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("sovfed.orders")
KINDS = ("proposed", "approved", "awaiting", "signed", "standing", "refused", "withdrawn", "purged")


@dataclass(frozen=True)
class OrderEvent:
    """What happened to the order of `digest`, by whose doing; `key` is the public key (base64) of who signed."""

    kind: str = choice("awaiting", KINDS)
    digest: str = bounded("", 0, 64)
    run: str = bounded("", 0, 128)
    who: str = bounded("", 0, 200)
    key: str = bounded("", 0, 8192)


def tell(home: Path | None, event: OrderEvent) -> None:
    """Log `event`, and enter it into the log of `home`, where a person is a key and has no name."""
    who = f" by {event.who}" if event.who else ""
    log.info("order %s of run %s: %s%s", event.digest[:12], visible(event.run), event.kind, visible(who))
    if home is not None:
        by = hashlib.sha256(event.key.encode()).hexdigest() if event.key else ""
        record(home, "order", event=event.kind, name=event.run, order=event.digest, by=by)
