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

from sovfed.federation.config import ANNUAL_EPSILON, SHARE_PER_RUN, USUAL_DELTA
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
class Whose:
    """Whose records a run reads: `population` "" is the home's own, `keys` what those records are known by."""

    population: str = ""
    study: str = ""
    keys: tuple[str, ...] = ()


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
    annual_epsilon: float = bounded(ANNUAL_EPSILON, 1e-3, 1e3, doc="most ε within any 366 days")
    delta: float = bounded(
        USUAL_DELTA, 1e-15, 1e-2, doc="δ of both: a power of ten, at most 1 / (10 × population); runs must plan with it"
    )
    population: int = bounded(
        100_000,
        1,
        10**12,
        unit="persons",
        doc="declared public size of the population, never counted from the records",
    )
    max_share_per_run: float = bounded(
        SHARE_PER_RUN,
        1e-3,
        1.0,
        doc="most of annual_epsilon that one run may reserve, so that one cannot take a whole year",
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
    digest: str = bounded(low=_HEX, high=_HEX, doc="HMAC-SHA-256 of what leaves, by the home's key, hexadecimal")

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
    population: str = bounded("", 0, 64, doc='who is charged; "" is the population that the ledger is named after')


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
    population: str = bounded("", 0, 64)


@dataclass(frozen=True)
class Read:
    """What the records of `population` are known by, before the first run of them is answered."""

    keys: tuple[str, ...] = bounded(low=1, high=200)
    population: str = bounded("", 0, 64)


@dataclass(frozen=True)
class Assigned:
    """The operator's own act: the persons in the records of `study` are those of `population`, from here on.

    They have learnt about them what runs over the populations in `inherits` did. `apart`: the operator says that they
    are none of the persons that the same `keys` stood for before, so that nothing is inherited.
    """

    study: str = bounded(low=1, high=128)
    because: str = bounded(low=1, high=500)
    keys: tuple[str, ...] = bounded(low=1, high=200)
    population: str = bounded("", 0, 64)
    inherits: tuple[str, ...] = bounded((), 0, 64)
    apart: bool = bounded(False)


@dataclass(frozen=True)
class Clock:
    """The time was looked at, so that a later jump shows; or the operator confirmed that it is what the clock says."""

    confirmed: bool = bounded(False)


@dataclass(frozen=True)
class Renamed:
    """The population is called `name` from here on; the chain goes on."""

    name: str = bounded(low=1, high=64)


Entry: TypeAlias = Opened | Budget | Grant | Spent | Closed | Refused | Unbounded | Read | Assigned | Clock | Renamed
KINDS: Final[dict[str, type[Entry]]] = {
    "open": Opened,
    "budget": Budget,
    "grant": Grant,
    "spend": Spent,
    "close": Closed,
    "refuse": Refused,
    "no-bound": Unbounded,
    "records": Read,
    "assign": Assigned,
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
    """The entries, indexed for the rules of `ledger.py`; read there, changed by `add` alone. Times: POSIX seconds.

    A population is "" where it is the one that the ledger is named after.
    """

    name: str = ""
    budgets: dict[str, Budget] = field(default_factory=dict)
    grants: dict[tuple[str, str], Granted] = field(default_factory=dict)
    spends: list[tuple[float, Spent]] = field(default_factory=list)
    refusals: list[tuple[float, Refused]] = field(default_factory=list)
    unbounded: dict[tuple[str, str], tuple[float, Unbounded]] = field(default_factory=dict)
    used: int = 0  # entries that change what is left of a budget
    last_at: float = 0.0
    gaps: list[tuple[float, float]] = field(default_factory=list)  # (end, seconds) of times that nobody saw pass
    known: dict[str, set[str]] = field(default_factory=dict)  # by key of records, the populations that they are of
    assigned: dict[str, Assigned] = field(default_factory=dict)  # by study, the newest
    assigned_ever: list[Assigned] = field(default_factory=list)
    charged: dict[str, list[tuple[float, Event]]] = field(default_factory=dict)  # by population, own and inherited
    taken: dict[tuple[str, str], int] = field(default_factory=dict)  # by population and heir, how many of its charges
    unnamed: bool = False  # something was answered before the ledger knew records by keys

    def add(self, at: float, entry: Entry) -> None:
        if self.last_at and at - self.last_at > UNSEEN_S:
            self.gaps.append((at, at - self.last_at))
        self.last_at = max(at, self.last_at)
        self.used += isinstance(entry, Budget | Grant | Spent | Closed | Assigned)
        match entry:
            case Grant() | Spent() | Closed() | Refused() | Unbounded():
                self._add_of_run(at, entry)
            case Opened():
                self.name = entry.dataset
            case Renamed():
                self.name = entry.name
            case Budget():
                self.budgets["" if entry.population_name == self.name else entry.population_name] = entry
            case Read():
                for key in entry.keys:
                    self.known.setdefault(key, set()).add(entry.population)
            case Assigned():
                self._assign(at, entry)
            case Clock():
                self.gaps = [] if entry.confirmed else self.gaps

    def _add_of_run(self, at: float, entry: Grant | Spent | Closed | Refused | Unbounded) -> None:
        match entry:
            case Grant():
                self.unnamed |= not self.known
                self.grants[entry.run, entry.plan.purpose] = Granted(entry, at, used_at=at)
            case Spent():
                granted = self.grants[entry.run, entry.purpose]
                granted.releases[entry.release.round, entry.release.attempt] = granted.last = entry.release
                granted.charged += entry.release.event.count
                granted.used_at = at
                self.spends.append((at, entry))
                self.charged.setdefault(granted.grant.population, []).append((at, entry.release.event))
            case Closed():
                self.grants[entry.run, entry.purpose].closed = True
            case Refused():
                self.refusals.append((at, entry))
            case Unbounded():
                self.unnamed |= not self.known
                self.unbounded.setdefault((entry.run, entry.purpose), (at, entry))

    def _assign(self, at: float, entry: Assigned) -> None:
        """Let the study's population inherit what others learnt, and may yet learn, and have what it is known by."""
        charged = self.charged.setdefault(entry.population, [])
        for source in entry.inherits:
            charges, pair = self.charged.get(source, []), (entry.population, source)
            charged += [*charges[self.taken.get(pair, 0) :], *self._reserves_of(source, at)]
            self.taken[pair] = len(charges)
        self.assigned[entry.study] = entry
        self.assigned_ever.append(entry)
        for key in entry.keys:
            populations = self.known.get(key, set()) if entry.apart else set()
            self.known[key] = {*populations, entry.population}
        self.known[study_key(entry.study)] = {entry.population}

    def spent(self, after: float = -math.inf, until: float = math.inf, population: str = "") -> list[Event]:
        """What was spent at times in (after, until], equal events merged."""
        return merged(event for at, event in self.charged.get(population, ()) if after < at <= until)

    def reserved(self, population: str = "") -> list[Event]:
        """What open grants may still spend, equal events merged."""
        return merged(event for _, event in self._reserves_of(population, 0.0))

    def populations(self) -> list[str]:
        """Those that there is anything of, the home's own first."""
        names = {entry.population for entry in self.assigned.values()} | self.budgets.keys()
        return ["", *sorted(names - {""})]

    def why_not(self, whose: Whose) -> str:
        """Why the ledger charges nothing to that population for those records; "" if it does.

        A further population is one only by the operator's own act, and so is that records are of another than before.
        """
        act = f"`sovfed client ledger assign {whose.study}` says whose they are"
        entry = self.assigned.get(whose.study)
        if whose.population and (entry is None or entry.population != whose.population):
            return f"nobody said in this ledger that the records of {whose.study} are of '{whose.population}'; {act}"
        for key in (study_key(whose.study), *whose.keys):
            populations = self.known.get(key)
            if populations and whose.population not in populations:
                names = " and ".join(repr(population or self.name) for population in sorted(populations))
                return f"the records of {whose.study} are of {names}, not of '{whose.population or self.name}'; {act}"
        return ""

    def heirs_of(self, whose: Whose) -> tuple[str, ...]:
        """The populations that the records may have been charged to so far."""
        populations = {
            population for key in (study_key(whose.study), *whose.keys) for population in self.known.get(key, ())
        }
        return tuple(sorted((populations | ({""} if self.unnamed else set())) - {whose.population}))

    def no_bound(self, population: str) -> list[tuple[float, Unbounded]]:
        """The runs without privacy over its records, and over those of populations that it inherits from."""
        whose, grown = set[str](), {population}
        while grown - whose:
            whose |= grown
            grown = {heir for entry in self.assigned_ever if entry.population in whose for heir in entry.inherits}
        return [(at, entry) for at, entry in self.unbounded.values() if entry.population in whose]

    def _reserves_of(self, population: str, at: float) -> list[tuple[float, Event]]:
        grants = [granted for granted in self.grants.values() if granted.grant.population == population]
        plans = [(granted.grant.plan.event, granted.reserved) for granted in grants]
        return [(at, Event(plan.noise_multiplier, plan.sampling_rate, steps)) for plan, steps in plans if steps]


def study_key(study: str) -> str:
    """What the records of a study are known by, whatever they are read from."""
    return f"study {study}"


def merged(events: Iterable[Event]) -> list[Event]:
    """`events` with the counts of equal (z, q) added up, in a fixed order."""
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[event.noise_multiplier, event.sampling_rate] += event.count
    return [Event(z, q, count) for (z, q), count in sorted(counts.items())]
