"""Which entries of the agency's log are still needed, however old: those of runs with which somebody is not done."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import SovfedError
from sovfed.federation.evidence.retention import Rule, Terms
from sovfed.federation.evidence.store import LogReader
from sovfed.server.home import load_settings
from sovfed.server.orders.making import read_order
from sovfed.server.orders.purging import is_purged
from sovfed.server.orders.unlearning import read_unlearning
from sovfed.server.orders.withdrawn import read_withdrawn
from sovfed.server.runs.folders import ACTIVE, STATE, is_held, read_state
from sovfed.server.runs.release import SUMMARY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

ORDERS: Final = "withdrawals from their run are held to them"


def terms(home: Path) -> Terms:
    """How long the log of `home` is kept by `server.json`, and what is needed longer."""
    return terms_of(home, load_settings(home).server.log_retention_days)


def terms_of(home: Path, days: int) -> Terms:
    """The same, by settings that were read already."""
    return Terms(Rule(days, "server.log_retention_days"), partial(needed, home))


def needed(home: Path) -> Callable[[Mapping[str, Any]], str]:
    """Why an entry must stay, "" if it need not. Of a run whose folder is gone nothing is needed."""
    released = {json.loads(data)["name"] for _, data in LogReader(home).of_kind("release")}
    runs = {folder.name: _why(home, folder, released, time.time()) for folder in (home / "runs").glob("*")}

    def judge(values: Mapping[str, Any]) -> str:
        name = values.get("name")
        if not isinstance(name, str) or name not in runs:
            return ""
        return runs[name] or (ORDERS if values["kind"] == "order" else "")

    return judge


def _why(home: Path, folder: Path, released: set[str], now: float) -> str:
    """Why all entries of the run in `folder` must stay; "" if they need not."""
    try:
        if is_held(folder) or ((folder / STATE).exists() and read_state(home, folder.name)["status"] in ACTIVE):
            return "their run goes on"
        proposal = read_order(folder)
        if proposal is not None and proposal.order.expires > now:
            return "their order still holds"
        if proposal is not None and proposal.order.permit and not is_purged(home, proposal.order.permit):
            return f"permit {proposal.order.permit} is not purged"
        if folder.name not in released:
            return "nothing of their run was released"
        gone = read_withdrawn(folder)
        if any(entry.rounds for entry in gone) and not _made_anew(folder, {entry.institution for entry in gone}):
            return "somebody withdrew, and the model was not made anew"
    except (SovfedError, OSError, ValueError) as error:
        return f"the folder of their run cannot be read: {error}"
    return ""


def _made_anew(run: Path, gone: set[str]) -> bool:
    """Whether the run in the folder `run` was made anew, to its end, without all of `gone`."""
    for folder in run.parent.glob("*"):
        made = read_unlearning(folder)
        if made is not None and made.of == run.name and gone <= {*made.withdrawn} and (folder / SUMMARY).exists():
            return True
    return False
