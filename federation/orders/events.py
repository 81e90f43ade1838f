"""The one place that each event of an order passes, at either side: a line of the log, and whoever listens besides."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.federation.schema import bounded, choice
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("sovfed.orders")
KINDS = ("proposed", "approved", "awaiting", "signed", "standing", "refused", "purged")
LISTENERS: list[Callable[[OrderEvent], None]] = []


@dataclass(frozen=True)
class OrderEvent:
    """What happened to the order of `digest`, by whose doing; no record, weight or detail of a person's."""

    kind: str = choice("awaiting", KINDS)
    digest: str = bounded("", 0, 64)
    run: str = bounded("", 0, 128)
    who: str = bounded("", 0, 200)


def tell(event: OrderEvent) -> None:
    """Log `event`, and pass it to each of LISTENERS."""
    who = f" by {event.who}" if event.who else ""
    log.info("order %s of run %s: %s%s", event.digest[:12], visible(event.run), event.kind, visible(who))
    for listener in LISTENERS:
        listener(event)
