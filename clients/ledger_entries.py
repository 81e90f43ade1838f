"""What a privacy ledger says, as data: what was granted, spent, returned, refused, or told without any bound at all.

ε stands in the entries for the reader's sake alone: it is always recomputed from the events.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field
from typing import Final, TypeAlias

from sovfed.federation.privacy.events import Event
from sovfed.federation.schema import bounded, choice

MECHANISMS: Final = ("distributed", "silo", "institution")
YEAR_S: Final = 366 * 86_400.0  # never shorter than a calendar year, so this limit implies the calendar's
DAY_S: Final = 86_400.0
UNSEEN_S: Final = 4 * DAY_S  # a trainer that runs writes an entry every day; shorter gaps are nights and weekends
LEDGER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
NAME_RULE: Final = "is no ledger's name: 1 to 64 of a-z 0-9 _ . -, the first of a-z 0-9"
_HEX: Final = 64  # characters of a SHA-256


@dataclass(frozen=True)
class Budget:
    """What all runs together may ever learn about one person of the population, by the institution's policy."""

    population_name: str = bounded(
        "persons",
        1,
        64,
        doc="whom the records are about, whatever file they are read from: a-z 0-9 _ . - as in st_anna_patients; "
        "they have one ledger, of this name",
    )
    epsilon: float = bounded(8.0, 1e-3, 1e3, doc="most ε over the life of the data, all runs of all years together")
    annual_epsilon: float = bounded(3.0, 1e-3, 1e3, doc="most ε within any 366 days")
    delta: float = bounded(
        1e-6, 1e-15, 1e-2, doc="δ of both: a power of ten, at most 1 / (10 × population); runs must plan with it"
    )
    population: int = bounded(
        100_000,
        1,
        10**12,
        unit="persons",
        doc="declared public size of the population, never counted from the records",
    )
    max_share_per_run: float = bounded(
        0.5, 1e-3, 1.0, doc="most of annual_epsilon that one run may reserve, so that one cannot take a whole year"
    )
    lapse_days: int = bounded(30, 1, 366, unit="days", doc="a grant that releases nothing for so long is closed")

    def __post_init__(self) -> None:
        if not LEDGER_NAME.fullmatch(self.population_name):
            raise ValueError(f"population_name '{self.population_name}' {NAME_RULE}")
        places = -round(math.log10(self.delta))
        if self.delta != float(f"1e{-places}"):
            raise ValueError(f"delta {self.delta:g} is not a power of ten")
        if 10 * self.population > 10**places:
            raise ValueError(f"delta {self.delta:g} is above 1 / (10 × population) = {0.1 / self.population:g}")


@dataclass(frozen=True)
class Plan:
    """All that one purpose of a run may release. `event.count` are the planned steps, spares for repeats included.

    The event is what it is to one person of the population: under `institution`, a person can move the clipped update
    by 2C, so the noise multiplier here is half of the one against leaving the institution out.
    """

    event: Event
    mechanism: str = choice(MISSING, MECHANISMS)
    clip: float = bounded(low=1e-12, high=1e12, doc="L2 bound C on one person's contribution")
    delta: float = bounded(low=1e-15, high=1e-2)
    rounds: int = bounded(low=0, high=10**9, doc="highest round")
    config: str = bounded(low=_HEX, high=_HEX, doc="SHA-256 of code and configuration, hexadecimal")
    purpose: str = bounded("train", 1, 32, doc="what is released: each purpose of a run has its own grant")


@dataclass(frozen=True)
class Release:
    """What is about to leave: `event.count` steps from `first_step` on, in attempt `attempt` of round `round`."""

    event: Event
    round: int = bounded(low=0, high=10**9)
    attempt: int = bounded(low=0, high=10**6)
    first_step: int = bounded(low=0, high=10**9)
    mechanism: str = choice(MISSING, MECHANISMS)
    clip: float = bounded(low=1e-12, high=1e12)
    config: str = bounded(low=_HEX, high=_HEX)
    digest: str = bounded(low=_HEX, high=_HEX, doc="SHA-256 of the bytes that leave, hexadecimal")

    @property
    def stop(self) -> int:
        return self.first_step + self.event.count


@dataclass(frozen=True)
class Opened:
    """The first entry: whom the ledger protects, and against which neighbour."""

    dataset: str = bounded(low=1, high=64)
    unit: str = choice("person", ["person"])
    adjacency: str = choice("add_or_remove_one", ["add_or_remove_one"])


@dataclass(frozen=True)
class Grant:
    """A reservation: ε of the population, with all that is reserved for others, before and after the whole plan."""

    plan: Plan
    run: str = bounded(low=1, high=128)
    epsilon_before: float = bounded(low=0.0)
    epsilon_after: float = bounded(low=0.0)


@dataclass(frozen=True)
class Spent:
    """A release that was paid for, and may have left; `epsilon` is of all that was spent, this included."""

    release: Release
    run: str = bounded(low=1, high=128)
    purpose: str = bounded(low=1, high=32)
    epsilon: float = bounded(low=0.0)


@dataclass(frozen=True)
class Closed:
    """The end of a grant; `returned` steps were never started."""

    run: str = bounded(low=1, high=128)
    purpose: str = bounded(low=1, high=32)
    returned: int = bounded(low=0, high=10**9)


@dataclass(frozen=True)
class Refused:
    """What was asked for and not given, and why."""

    run: str = bounded(low=1, high=128)
    purpose: str = bounded(low=1, high=32)
    reason: str = bounded(low=1, high=500)


@dataclass(frozen=True)
class Unbounded:
    """A run without differential privacy was answered: what it learnt about a person has no bound. Once a purpose."""

    run: str = bounded(low=1, high=128)
    purpose: str = bounded(low=1, high=32)
    task: str = bounded(low=1, high=64)


@dataclass(frozen=True)
class Clock:
    """The time was looked at, so that a later jump shows; or the operator confirmed that it is what the clock says."""

    confirmed: bool = bounded(False)


@dataclass(frozen=True)
class Renamed:
    """The population is called `name` from here on; the chain goes on."""

    name: str = bounded(low=1, high=64)


Entry: TypeAlias = Opened | Budget | Grant | Spent | Closed | Refused | Unbounded | Clock | Renamed
KINDS: Final[dict[str, type[Entry]]] = {
    "open": Opened,
    "budget": Budget,
    "grant": Grant,
    "spend": Spent,
    "close": Closed,
    "refuse": Refused,
    "no-bound": Unbounded,
    "clock": Clock,
    "rename": Renamed,
}
KIND_OF: Final = {kind: name for name, kind in KINDS.items()}


@dataclass
class Granted:
    """A grant and what became of it; `last` is the newest release, `charged` the steps of all of them."""

    grant: Grant
    at: float
    releases: dict[tuple[int, int], Release] = field(default_factory=dict)
    last: Release | None = None
    charged: int = 0
    closed: bool = False
    used_at: float = 0.0  # of the newest release, or else of the grant

    @property
    def reserved(self) -> int:
        """Steps that may still be started."""
        return 0 if self.closed else self.grant.plan.event.count - self.charged


@dataclass
class History:
    """The entries, indexed for the rules of `ledger.py`; read there, changed by `add` alone. Times: POSIX seconds."""

    budget: Budget | None = None
    grants: dict[tuple[str, str], Granted] = field(default_factory=dict)
    spends: list[tuple[float, Spent]] = field(default_factory=list)
    refusals: list[tuple[float, Refused]] = field(default_factory=list)
    unbounded: dict[tuple[str, str], tuple[float, Unbounded]] = field(default_factory=dict)
    used: int = 0  # entries that change what is left of the budget
    last_at: float = 0.0
    gaps: list[tuple[float, float]] = field(default_factory=list)  # (end, seconds) of times that nobody saw pass

    def add(self, at: float, entry: Entry) -> None:
        if self.last_at and at - self.last_at > UNSEEN_S:
            self.gaps.append((at, at - self.last_at))
        self.last_at = max(at, self.last_at)
        self.used += isinstance(entry, Budget | Grant | Spent | Closed)
        match entry:
            case Budget():
                self.budget = entry
            case Grant():
                self.grants[entry.run, entry.plan.purpose] = Granted(entry, at, used_at=at)
            case Spent():
                granted = self.grants[entry.run, entry.purpose]
                granted.releases[entry.release.round, entry.release.attempt] = granted.last = entry.release
                granted.charged += entry.release.event.count
                granted.used_at = at
                self.spends.append((at, entry))
            case Closed():
                self.grants[entry.run, entry.purpose].closed = True
            case Refused():
                self.refusals.append((at, entry))
            case Unbounded():
                self.unbounded.setdefault((entry.run, entry.purpose), (at, entry))
            case Clock(confirmed=True):
                self.gaps.clear()
            case Opened() | Clock() | Renamed():
                pass

    def spent(self, after: float = -math.inf, until: float = math.inf) -> list[Event]:
        """What was spent at times in (after, until], equal events merged."""
        return merged(entry.release.event for at, entry in self.spends if after < at <= until)

    def reserved(self) -> list[Event]:
        """What open grants may still spend, equal events merged."""
        plans = [(granted.grant.plan.event, granted.reserved) for granted in self.grants.values()]
        return merged(Event(plan.noise_multiplier, plan.sampling_rate, left) for plan, left in plans if left)


def merged(events: Iterable[Event]) -> list[Event]:
    """`events` with the counts of equal (z, q) added up, in a fixed order."""
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[event.noise_multiplier, event.sampling_rate] += event.count
    return [Event(z, q, count) for (z, q), count in sorted(counts.items())]
