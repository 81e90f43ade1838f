"""Where an institution's orders lie in its home."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ORDERS: Final = Path("orders")
ANSWERS: Final = ORDERS / "answers"
RECEIPTS: Final = ORDERS / "receipts"
WITHDRAWN: Final = ORDERS / "withdrawn.json"  # by the operator's command alone
STATE: Final = ORDERS / "state"  # the trainer's own: it may write nowhere else of these
PROPOSED: Final = STATE / "proposed"
CONSENTS: Final = STATE / "consents"
RUNS: Final = STATE / "runs.json"
IN_FORCE: Final = STATE / "officers.json"
FOLDERS: Final = (ORDERS, ANSWERS, RECEIPTS, STATE, PROPOSED, CONSENTS)
