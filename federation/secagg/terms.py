"""What an institution's own policy allows of secure aggregation; the coordinator's word alone changes none of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sovfed.federation.errors import BoundError, PolicyError
from sovfed.federation.schema import bounded, choice
from sovfed.federation.secagg.keys import CLASSICAL, SUITES
from sovfed.federation.secagg.ring import FRACTION_BITS, LANES, Ring
from sovfed.federation.secagg.shares import MAX_HOLDERS

LEAST_COHORT: Final = 3  # honest institutions in a sum: of two, each learns the other's update from it
LEAST_VALUE_BITS: Final = 4  # what is still too coarse to learn from, the coordinator refuses (secagg.max_error)
REFUSE: Final = "refuse"
RECORD: Final = "record"


def threshold(members: int) -> int:
    """t = ⌊2n/3⌋ + 1 shares of n; part of the protocol, so the coordinator cannot choose it."""
    return 2 * members // 3 + 1


def colluders_tolerated(members: int) -> int:
    """The most colluders c with 2t > n + c, so that any two quorums share an honest holder."""
    return 2 * threshold(members) - members - 1


def shared_holders(members: Collection[object], other_members: Collection[object]) -> int:
    """The fewest holders that a quorum of each of two rosters have in common; may be negative."""
    return threshold(len(members)) + threshold(len(other_members)) - len({*members, *other_members})


@dataclass(frozen=True)
class Terms:
    """An institution's bounds on a run. Defaults are for production; a demonstration must lower `min_cohort` itself."""

    min_cohort: int = bounded(5, LEAST_COHORT, MAX_HOLDERS, doc="fewest institutions in any sum; colluders feared + 3")
    colluders: int = bounded(1, 0, MAX_HOLDERS, doc="institutions that may side with the coordinator")
    bits: tuple[int, ...] = bounded((8, 12, 16, 21, 32), 8, 32, doc="ring widths allowed, per parameter")
    min_clip: float = bounded(1.0, 0.0, 1e9, doc="smallest clip: what it shrinks depends on records")
    max_clip: float = bounded(1e3, 0.0, 1e9, doc="largest clip")
    max_weight: int = bounded(10_000_000, 1, 2**48, doc="largest W_max", unit="records")
    least_max_weight: int = bounded(
        1_000, 1, 2**48, doc="smallest W_max: sums under many small ones tell how many records each has", unit="records"
    )
    max_size: int = bounded(1_000_000_000, 0, 2**40, doc="longest vector", unit="parameters")
    max_metrics: int = bounded(4094, 0, 4094, doc="most metric words in the header")
    max_run_s: float = bounded(30 * 86400.0, 60.0, 366 * 86400.0, doc="longest life of a run's keys", unit="s")
    post_quantum: bool = bounded(True, doc="refuse a roster that falls back to X25519 alone")
    members: tuple[str, ...] = bounded((), doc="the only institutions to aggregate with; empty = all certified")
    expected: tuple[str, ...] = bounded((), doc="institutions that every roster must hold")
    member_keys: tuple[str, ...] = bounded(
        (), 66, 128, doc="institutions whose key must be this one, as NAME=SHA-256 of it; an order can name more"
    )
    differencing: str = choice(
        REFUSE,
        (REFUSE, RECORD),
        doc="a sum without privacy over almost the same institutions as an earlier one: refuse it, or record it",
    )
    table_days: int = bounded(
        365,
        0,
        36_500,
        unit="days",
        doc="for which a table, whose noise hides persons only, counts as such a sum; 0: never",
    )

    def __post_init__(self) -> None:
        if self.min_cohort < self.colluders + LEAST_COHORT:
            raise ValueError(
                f"min_cohort {self.min_cohort} is below colluders + {LEAST_COHORT} = {self.colluders + LEAST_COHORT}: "
                "with fewer, those who collude learn one institution's update, or tell two apart"
            )

    def check_offer(
        self, *, ring: Ring, fraction_bits: int, min_cohort: int, max_size: int, max_metrics: int, expires: int,
        now: float,
    ) -> None:  # fmt: skip
        """Raise PolicyError unless a run may be joined under these parameters."""
        self.check_parameters(
            bits=ring.bits, clip=ring.clip, max_weight=ring.max_weight, min_cohort=min_cohort, size=max_size
        )
        _require(fraction_bits == FRACTION_BITS, f"metrics with {fraction_bits} bits behind the point", FRACTION_BITS)
        _require(max_metrics <= self.max_metrics, f"{max_metrics} metrics", self.max_metrics)
        _require(now < expires <= now + self.max_run_s, f"keys that last {expires - now:.0f} s", self.max_run_s)

    def check_parameters(self, *, bits: int, clip: float, max_weight: int, min_cohort: int, size: int) -> None:
        """Raise BoundError, which names the term, unless a run may be joined with these: no roster changes them."""
        _within(bits in LANES and bits in self.bits, f"ring of {bits} bits", self.bits, "bits")
        clips = self.min_clip, self.max_clip
        _within(clips[0] <= clip <= clips[1], f"clip {clip:g}", clips, "min_clip" if clip < clips[0] else "max_clip")
        weights = (self.least_max_weight, self.max_weight)
        name = "least_max_weight" if max_weight < weights[0] else "max_weight"
        _within(weights[0] <= max_weight <= weights[1], f"maximum weight {max_weight}", weights, name)
        _within(min_cohort >= self.min_cohort, f"minimum cohort {min_cohort}", self.min_cohort, "min_cohort")
        _within(size <= self.max_size, f"vectors of up to {size}", self.max_size, "max_size")

    def check_roster(self, names: Sequence[str], suite: int) -> None:
        """Raise PolicyError unless these institutions, with keys of `suite`, may aggregate together."""
        _require(len(names) >= self.min_cohort, f"a roster of {len(names)}", self.min_cohort)
        tolerated = colluders_tolerated(len(names))
        _require(
            tolerated >= self.colluders, f"a roster of {len(names)} that bears {tolerated} colluders", self.colluders
        )
        _require(suite != CLASSICAL or not self.post_quantum, f"key agreement {SUITES[suite]}", "ML-KEM-768")
        strangers = sorted(set(names) - set(self.members)) if self.members else []
        _require(not strangers, f"institutions not on the list of members: {', '.join(strangers)}", self.members)
        absent = sorted(set(self.expected) - set(names))
        _require(not absent, f"institutions missing from the roster: {', '.join(absent)}", self.expected)

    def check_keys(self, keys: Mapping[str, str]) -> None:
        """Raise PolicyError unless the institutions of a roster have the keys (SHA-256, by name) that are theirs."""
        pinned = [entry.partition("=")[::2] for entry in self.member_keys]
        others = sorted({name for name, key in pinned if keys.get(name, key) != key})
        _require(not others, f"another key of {', '.join(others)}", "that which order or policy names")

    def check_cohort(self, size: int, offered: int) -> None:
        """Raise PolicyError unless a sum over `size` institutions may be revealed."""
        least = max(self.min_cohort, offered)
        _require(size >= least, f"a sum over {size} institutions", least)


def check_value_bits(ring: Ring) -> None:
    """Raise PolicyError if the cohort leaves too few bits of the ring for a value."""
    offered = f"{ring.value_bits} of {ring.bits} bits for the values of a cohort of {ring.cohort}"
    _require(ring.value_bits >= LEAST_VALUE_BITS, offered, LEAST_VALUE_BITS)


def _within(holds: bool, offered: str, allowed: object, term: str) -> None:
    if not holds:
        message = f"secure aggregation: {offered}; this institution's terms: {allowed}"
        raise BoundError(message, f"secure_aggregation.{term}")


def _require(holds: bool, offered: str, allowed: object) -> None:
    if not holds:
        raise PolicyError(f"secure aggregation: {offered}; this institution's terms: {allowed}")
