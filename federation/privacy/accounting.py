"""ε of many events, by privacy loss distributions (PLD).

Unit: a person. Adjacency: add or remove one. Sampling: Poisson. Accountant: dp-accounting's PLD, pessimistic
(connect-the-dots; Doroshenko et al. 2022, arXiv:2207.04380): each discretised distribution dominates the true one, so
that a finer interval lowers ε and none lets it fall below the truth. Releases of everybody (q = 1) are merged exactly:
Gaussian mechanisms with z₁, z₂, … are one with 1/z² = Σ 1/z_i².

What pessimism does not cover is the rounding of the FFT inside, about 2^-50 a release: δ is lowered by that much first.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.events import Event

if TYPE_CHECKING:
    from dp_accounting.pld import privacy_loss_distribution as pld  # type: ignore[import-untyped]

    Distribution: TypeAlias = pld.PrivacyLossDistribution

DAILY: Final = 1e-3  # value discretization interval of the ledger
CERTIFICATE: Final = 1e-4  # of what is published
_ROUNDING: Final = 2.0**-50
_MIN_MULTIPLIER: Final = 0.05  # below, ε is hundreds and the discretisation takes gigabytes: reported as infinite
_MAX_DIVERGENCE: Final = 500.0  # nats, summed over all releases; likewise
MAX_RELEASES: Final = 10**6  # likewise: the rounding of longer compositions is no longer small against δ
_EXACT: Final = 24  # kinds of events that are composed as they are, the costliest; the others are gathered
_CELLS: Final = 64  # into at most so many
_OCTAVES: Final = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)  # widths of a cell; 4 needs no more than 56 of them
_KINDS_KEPT: Final = 256  # distributions in memory, over all the kinds of one ledger: each takes 20 ms to make
_STEP: Final = 10_000  # noise multipliers are calibrated in 1/10,000


def accountant_version() -> str:
    """What computed ε, for certificates."""
    return f"PLD, dp-accounting {importlib.metadata.version('dp-accounting')}"


@dataclass(frozen=True)
class Accountant:
    """ε of a list of events that grows: `plus` composes with what is there and recomputes nothing older.

    `accountant.plus(event).epsilon(delta)` is what ε would be; `accountant` itself never changes.
    """

    interval: float = DAILY
    _older: Distribution | None = None  # all sampled events but the newest kind
    _newest: Event | None = None  # the newest kind, with its count
    _precision: float = 0.0  # Σ 1/z² of releases of everybody
    _divergence: float = 0.0  # Σ of a bound on each release's Kullback-Leibler divergence, nats
    _releases: int = 0

    def __post_init__(self) -> None:
        if not 1e-5 <= self.interval <= 1e-1:
            raise PrivacyError(f"a discretization interval of {self.interval!r} is outside 1e-5 to 0.1")

    def plus(self, *events: Event) -> Accountant:
        """Those before and `events`; consecutive ones that differ only in their count are composed at once."""
        accountant = self
        for event in events:
            accountant = accountant._plus(event)
        return accountant

    def epsilon(self, delta: float) -> float:
        """The least ε at which all events together are (ε, delta)-DP: 0 for none, infinite where it is in the hundreds
        and for more than 10^6 releases. Raises PrivacyError unless 0 < delta < 1.
        """
        if not 0 < delta < 1:
            raise PrivacyError(f"delta must lie in (0, 1), got {delta!r}")
        if self._releases == 0:
            return 0.0
        delta -= self._releases * _ROUNDING
        if delta <= 0 or not self._bearable:
            return math.inf
        composed = self._sampled()
        if self._precision:
            everybody = _one(1 / math.sqrt(self._precision), 1.0, self.interval)
            composed = everybody if composed is None else composed.compose(everybody)
        return float(composed.get_epsilon_for_delta(delta)) if composed is not None else 0.0

    def _plus(self, event: Event) -> Accountant:
        z, q, count = event.noise_multiplier, event.sampling_rate, event.count
        if not (math.isfinite(z) and z > 0 and 0 < q <= 1 and count >= 1):
            raise PrivacyError(
                f"an event of noise multiplier {z!r}, sampling rate {q!r}, count {count!r} has no meaning"
            )
        counted = replace(
            self, _releases=self._releases + count, _divergence=self._divergence + count * _divergence(z, q)
        )
        if q == 1:
            return replace(counted, _precision=self._precision + count / z**2)
        newest = self._newest
        if newest is not None and (newest.noise_multiplier, newest.sampling_rate) == (z, q):
            return replace(counted, _newest=Event(z, q, newest.count + count))
        return replace(counted, _older=self._sampled() if self._bearable else None, _newest=event)

    @property
    def _bearable(self) -> bool:
        return self._divergence <= _MAX_DIVERGENCE and self._releases <= MAX_RELEASES

    def _sampled(self) -> Distribution | None:
        if self._newest is None:
            return self._older
        kind = self._newest
        newest = _many(kind.noise_multiplier, kind.sampling_rate, kind.count, self.interval)
        return newest if self._older is None else self._older.compose(newest)


def epsilon(events: Iterable[Event], delta: float, interval: float = DAILY) -> float:
    """The least ε at which `events` together are (ε, delta)-DP: 0 for none, infinite where it is in the hundreds.

    Raises PrivacyError on an event or a delta out of range.
    """
    return Accountant(interval).plus(*sorted(events)).epsilon(delta)  # equal kinds stand together


@functools.lru_cache(maxsize=64)
def calibrate_noise_multiplier(
    target_epsilon: float, delta: float, sampling_rate: float, steps: int, interval: float = DAILY
) -> float:
    """The least multiple of 1/10,000 with which all `steps` planned releases together are (target_epsilon, delta)-DP.

    `steps` counts the whole run: rounds × local steps. Raises PrivacyError if no multiplier up to 10^6 will do.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise PrivacyError(f"the target ε must be a finite number above 0, got {target_epsilon!r}")

    def holds(ticks: int) -> bool:
        return epsilon([Event(ticks / _STEP, sampling_rate, steps)], delta, interval) <= target_epsilon

    low, high = round(_MIN_MULTIPLIER * _STEP) - 1, _STEP  # `low` does not hold, `high` will
    while not holds(high):
        low, high = high, 2 * high
        if high > 10**6 * _STEP:
            raise PrivacyError(f"no noise reaches ε = {target_epsilon:g} at δ = {delta:g} in {steps} steps")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high / _STEP


def gathered(events: Iterable[Event]) -> list[Event]:
    """At most 89 kinds that together tell no less than `events`, whoever chose those; few are returned as they are.

    The 24 costliest kinds stay. The others are laid into cells, as narrow as 64 of them allow, each of which becomes
    its least noise and its highest sampling rate: less noise is undone by adding more, and H(P, (1-q)P + qQ) grows with
    q by convexity, in both directions. Releases of everybody are merged exactly and cost nothing to compose.
    """
    listed = list(events)
    sampled = [event for event in listed if event.sampling_rate < 1]
    if len(sampled) <= _EXACT:
        return sorted(listed)
    sampled.sort(key=lambda e: (-e.count * _divergence(e.noise_multiplier, e.sampling_rate), e))
    exact, cheaper = sampled[:_EXACT], sampled[_EXACT:]
    for width in _OCTAVES:
        cells: dict[tuple[int, int], Event] = {}
        for event in cheaper:
            z, q = event.noise_multiplier, event.sampling_rate
            cell = (math.floor(math.log2(z) / width), math.floor(math.log2(q) / width))
            worst = cells.get(cell, Event(z, q, 0))
            cells[cell] = Event(min(z, worst.noise_multiplier), max(q, worst.sampling_rate), worst.count + event.count)
        if len(cells) <= _CELLS:
            break
    everybody = [event for event in listed if event.sampling_rate == 1]
    return sorted([*exact, *cells.values(), *everybody])


def _divergence(z: float, q: float) -> float:
    """A bound on a release's KL divergence: q·KL by convexity, or χ² of the sampled pair; infinite for tiny z."""
    if z < _MIN_MULTIPLIER:
        return math.inf
    plain = 1 / (2 * z**2)
    return min(q * plain, q**2 * math.expm1(2 * plain)) if plain < 200 else q * plain


@functools.lru_cache(maxsize=_KINDS_KEPT)
def _one(z: float, q: float, interval: float) -> Distribution:
    from dp_accounting.pld import privacy_loss_distribution as pld

    return pld.from_gaussian_mechanism(
        z, sampling_prob=q, value_discretization_interval=interval, pessimistic_estimate=True, use_connect_dots=True
    )


@functools.lru_cache(maxsize=_KINDS_KEPT)
def _many(z: float, q: float, count: int, interval: float) -> Distribution:
    return _one(z, q, interval).self_compose(count)
