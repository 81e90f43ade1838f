"""What an institution's policy says of run orders: who signs them, what it consents to in advance, which permits."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import BoundError
from sovfed.federation.orders.approving import counted
from sovfed.federation.schema import bounded, choice
from sovfed.federation.statistics.settings import PURPOSE
from sovfed.federation.text import day, names_task

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sovfed.federation.identity import SignerIdentity
    from sovfed.federation.orders.order import RunOrder

STANDING: Final = "standing"
REQUIRED: Final = "required"
DAY_S: Final = 86_400
SKEW_S: Final = 600.0  # by which the agency's clock may be ahead


@dataclass(frozen=True)
class Standing:
    """To which orders the institution says yes in advance. The rest of the policy bounds them too."""

    proposers: tuple[str, ...] = bounded((), 1, 128, doc="who may ask, as the order names them; []: anybody")
    purposes: tuple[str, ...] = bounded((), 1, 500, doc="for what, word for word; []: anything")
    tasks: tuple[str, ...] = bounded((), 1, 128, doc="which tasks, by name or NAME@DIGEST; []: all in allowed_tasks")
    max_epsilon: float = bounded(100.0, 0.0, 1e9, doc="most that one run may tell of a person")
    max_rounds: int = bounded(100_000, 0, 1_000_000, doc="most rounds of one run")
    statistics: bool = bounded(False, doc="tables of statistics too; false: an officer signs each")
    until: str = bounded("", 0, 10, doc="last day of it, as 2027-12-31; empty: until this file is changed")

    def __post_init__(self) -> None:
        _last_second(self.until, "orders.standing.until")

    def why_not(self, order: RunOrder, now: float) -> str:
        """Why `order` needs a person; "" if it does not."""
        limits = (
            (not self.proposers or order.proposer in self.proposers, f"proposer {order.proposer!r}"),
            (not self.purposes or order.purpose in self.purposes, "its purpose"),
            (not self.tasks or any(names_task(entry, order.task, order.task_digest) for entry in self.tasks), "task"),
            (not order.statistics or self.statistics, "it asks for statistics"),
            (order.epsilon <= self.max_epsilon, f"ε {order.epsilon:g} above {self.max_epsilon:g}"),
            (order.rounds <= self.max_rounds, f"{order.rounds} rounds, more than {self.max_rounds}"),
            (now <= _last_second(self.until), f"it ended on {self.until}"),
        )
        return "; ".join(reason for holds, reason in limits if not holds)


@dataclass(frozen=True)
class DataPermit:
    """A permit under which records may be used: what it is for, by whom, at what cost, until when."""

    purpose: str = bounded("", 0, 500, doc="the order's purpose must be this; empty: any")
    persons: tuple[str, ...] = bounded((), 1, 128, doc="who may propose runs under it; []: anybody")
    tasks: tuple[str, ...] = bounded((), 1, 128, doc="tasks by name or NAME@DIGEST; []: all in allowed_tasks")
    epsilon: float = bounded(0.0, 0.0, 1e9, doc="most that all runs under it may tell of a person together")
    without_privacy: bool = bounded(False, doc="whether runs without differential privacy may be made under it")
    expires: str = bounded("", 0, 10, doc="last day, as 2027-12-31: no round is answered after it; empty: none")

    def __post_init__(self) -> None:
        _last_second(self.expires, "permits: expires")

    @property
    def ends(self) -> float:
        """When it is over, in Unix time."""
        return _last_second(self.expires)

    def why_not(self, order: RunOrder, spent: float, now: float) -> str:
        """Why `order` is not within the permit, under which other orders may tell `spent`; "" if it is."""
        limits = (
            (now <= self.ends, f"it ended on {self.expires}"),
            (not self.purpose or order.purpose == self.purpose, "it is for another purpose"),
            (not self.persons or order.proposer in self.persons, f"{order.proposer!r} is not one of its persons"),
            (not self.tasks or any(names_task(entry, order.task, order.task_digest) for entry in self.tasks), "task"),
            (order.kind == "private" or self.without_privacy, "the run is without differential privacy"),
            (spent + order.epsilon <= self.epsilon or order.kind != "private", f"ε {spent:g} + {order.epsilon:g}"),
        )
        return "; ".join(reason for holds, reason in limits if not holds)


@dataclass(frozen=True)
class OrderRules:
    """How a run's order becomes this institution's own."""

    mode: str = choice(
        STANDING, (STANDING, REQUIRED),
        doc="required: an officer signs each run before anything of it is answered; standing: a run within 'standing' "
        "is signed by this node itself, any other waits for an officer",
    )  # fmt: skip
    officers: tuple[str, ...] = bounded(
        (), 1, 128, doc="whose signatures count, as NAME=KEY; `sovfed client orders officer` makes a key and the entry"
    )
    sign_in_console: tuple[str, ...] = bounded(
        (), 1, 1_024, doc="officers who may sign on the page of `sovfed client console` too, as NAME=/PATH of their "
        "sealed key on this machine; []: nobody, an officer types `sovfed client orders sign` (docs/orders.md)",
    )  # fmt: skip
    min_approvers: int = bounded(0, 0, 16, doc="people of the agency who must have signed the order; two is usual")
    approvers: tuple[str, ...] = bounded((), 1, 128, doc="who may be one, as ORGANISATION or PERSON@ORGANISATION")
    max_days: int = bounded(366, 1, 3_660, unit="days", doc="longest life of an order")
    require_permit: bool = bounded(False, doc="answer only runs under one of 'permits'")
    standing: Standing = field(default_factory=Standing)

    def __post_init__(self) -> None:
        if self.min_approvers and not self.approvers:
            raise ValueError(f"min_approvers is {self.min_approvers}; name the agency's people in approvers")
        for entry in self.officers:
            name, _, key = entry.partition("=")
            if not name or not key:
                raise ValueError(f"officers: {entry[:40]!r} is not NAME=KEY")
        for entry in self.sign_in_console:
            name, _, path = entry.partition("=")
            if not name or not path.startswith("/"):
                raise ValueError(f"sign_in_console: {entry[:80]!r} is not NAME=/PATH of an officer's key")

    @property
    def keys(self) -> Mapping[str, str]:
        """The officers' public keys (base64), by name."""
        return {name: key for name, _, key in (entry.partition("=") for entry in self.officers)}

    @property
    def console_keys(self) -> Mapping[str, Path]:
        """The key files of those officers who may sign on the institution's page, by name."""
        pairs = (entry.partition("=") for entry in self.sign_in_console)
        return {name: Path(path) for name, _, path in pairs if name in self.keys}

    def check_times(self, order: RunOrder, now: float) -> None:
        """Raise BoundError unless the order holds now and does not hold for too long."""
        if now >= order.expires:
            raise BoundError(f"the order ended on {day(order.expires)}", "orders.expired")
        if now < order.proposed - SKEW_S:
            raise BoundError(f"the order is of {day(order.proposed)}, which is not yet here", "orders.clock")
        if order.expires - order.proposed > self.max_days * DAY_S:
            raise BoundError(f"the order is for longer than max_days {self.max_days}", "orders.max_days")

    def check_purpose(self, order: RunOrder) -> None:
        """Raise BoundError if the order asks for statistics and is for something else, or says so and does not."""
        if bool(order.statistics) != order.purpose.startswith(PURPOSE):
            raise BoundError(
                f"the order is for {order.purpose!r}; one that asks for statistics says so, and no other",
                "orders.purpose",
            )

    def check_approvals(self, approvers: Collection[SignerIdentity]) -> None:
        """Raise BoundError unless enough of the agency's people approved, each person and each key once."""
        people = counted(approvers, self.approvers)
        if len(people) < self.min_approvers:
            who = ", ".join(sorted(people)) or "nobody"
            raise BoundError(
                f"approved by {who} of {list(self.approvers)}; min_approvers is {self.min_approvers}",
                "orders.min_approvers",
            )


def _last_second(day: str, setting: str = "") -> float:
    """Until when `day` lasts (UTC), in Unix time; for ever if it is empty. Raises ValueError if it is no day."""
    if not day:
        return float("inf")
    try:
        last = date.fromisoformat(day) + timedelta(days=1)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{setting}: '{day}' is no day, expected one as 2027-12-31") from error
    return datetime(last.year, last.month, last.day, tzinfo=UTC).timestamp()
