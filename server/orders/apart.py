"""Which earlier sums keep institutions from answering an order, by the agency's own records, before anybody signs it.

Institutions judge it themselves and alone (`federation/secagg/opened.py`); here are their defaults, so that officers
are not asked in vain.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import SovfedError
from sovfed.federation.secagg.terms import Terms
from sovfed.server.orders.making import read_order
from sovfed.server.registry.enrolment import members
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.folders import read_state

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from sovfed.federation.config import Config
    from sovfed.federation.orders.order import RunOrder

DAYS: Final = Terms().table_days
DAY_S: Final = 86_400
NAMED: Final = 3  # runs in a warning; the rest are counted


@dataclass(frozen=True)
class Opened:
    """A sum that run `run`, `begun` then, has opened over `institutions`; it judges others `until`, None: for ever.

    Both in Unix time.
    """

    run: str
    institutions: frozenset[str]
    until: float | None
    begun: float = 0.0


def is_judged(order: RunOrder) -> bool:
    """Whether sums of its run are held against those of others: tables, scores, and whatever is without privacy."""
    return order.masked and (order.kind != "private" or bool(order.statistics or order.candidates))


def opened_sums(home: Path, now: float) -> Iterator[Opened]:
    """The sums that still judge others, a run's equal ones once. A run whose records are damaged is left out."""
    for folder in sorted((home / "runs").glob("*")):
        with contextlib.suppress(SovfedError, OSError, ValueError, KeyError):
            proposal = read_order(folder)
            if proposal is None or not is_judged(proposal.order):
                continue
            begun = float(read_state(home, folder.name)["started"])
            until = begun + DAYS * DAY_S if proposal.order.kind == "private" else None
            if until is None or now < until:
                cohorts = {frozenset(map(str, line["participants"])) for line in read_rounds(folder)}
                yield from (
                    Opened(folder.name, cohort, until, begun) for cohort in sorted(cohorts, key=sorted) if cohort
                )


def refusals_of(home: Path, order: RunOrder, now: float | None = None) -> list[str]:
    """Why institutions will not answer the run of `order`, in a sentence; [] if nothing speaks against it."""
    return _refusals(home, order.run, order.cohort, order.min_cohort, now) if is_judged(order) else []


def refusals_of_config(home: Path, run: str, config: Config) -> list[str]:
    """The same of a run that is started as `config` says, before there is an order of it."""
    judged = config.secagg.enabled and (config.task.tells_table or not config.privacy.private)
    return _refusals(home, run, config.order.cohort, config.server.min_cohort, None) if judged else []


def _refusals(home: Path, run: str, cohort: Collection[str], least: int, now: float | None) -> list[str]:
    asked = frozenset(cohort or (member.institution for member in members(home)))
    near = [
        earlier for earlier in opened_sums(home, time.time() if now is None else now)
        if earlier.run != run and 0 < len(asked ^ earlier.institutions) < least
    ]  # fmt: skip
    near.sort(key=lambda earlier: earlier.begun)
    return [_told(near, asked, least, named=bool(cohort))] if near else []


def _told(near: Sequence[Opened], asked: frozenset[str], least: int, *, named: bool) -> str:
    """One warning of all sums that are `near`, with what to do about the newest."""
    newest = near[-1].institutions
    same = [earlier for earlier in near if earlier.institutions == newest]
    runs = sorted({earlier.run for earlier in same})
    others = len({earlier.run for earlier in near} - {*runs})
    whose = "its cohort" if named else "who is enrolled, for it names no cohort,"
    ends = [earlier.until for earlier in near if earlier.until is not None]
    until = f", or wait until {time.strftime('%F', time.gmtime(max(ends)))}" if len(ends) == len(near) else ""
    return (
        f"institutions will refuse this by default: {whose} differs by {', '.join(sorted(asked ^ newest))}, fewer than "
        f"{least}, from that of {_listed(runs)}{f' (and of {others} other runs)' if others else ''}, and the two sums "
        f"would tell what these hold; do: order.cohort=[{','.join(sorted(newest))}]{until}"
    )


def _listed(runs: Sequence[str]) -> str:
    more = f" and {len(runs) - NAMED} more" if len(runs) > NAMED else ""
    return f"run{'s' if len(runs) > 1 else ''} {', '.join(runs[:NAMED])}{more}"
