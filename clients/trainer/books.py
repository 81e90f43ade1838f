"""Where a trainer counts, logs and keeps what runs ask of its institution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.clients.ledger.book import PrivacyLedger
    from sovfed.clients.models.received import ReceivedModels
    from sovfed.clients.orders.gate import OrderGate
    from sovfed.clients.statistics.sheets import KeptSheets
    from sovfed.clients.trainer.allowance import Allowance
    from sovfed.clients.trainer.evidence import Evidence


@dataclass(frozen=True)
class Books:
    """All that an institution has; a simulation has none.

    `open_ledger` is called with the first request that is charged or entered. `allowance` counts what is answered and
    what fails, `evidence` logs it. `orders` holds every message to an order that the institution has signed. The models
    of ended runs are kept in `received`, their signed tables in `sheets`.
    """

    open_ledger: Callable[[], PrivacyLedger | None] = lambda: None
    allowance: Allowance | None = None
    evidence: Evidence | None = None
    orders: OrderGate | None = None
    received: ReceivedModels | None = None
    sheets: KeptSheets | None = None


NO_BOOKS: Final = Books()
