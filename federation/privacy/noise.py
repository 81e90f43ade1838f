"""Noise for a sum of clipped vectors: what an institution adds, and what the accountant may charge for it.

Mechanism. A sum x of vectors of norm ≤ C is rounded to integers X (in units of a power of two: the division is
  exact); each of h institutions adds independent discrete Gaussians N_Z(s²) to the coordinates of its own part, and
  only the sum of all parts is seen: X + Y with Y a sum of h samples of N_Z(s²). `silo` and `institution` releases are
  the case h = 1. Between rounding and release there are integers only: no floating-point number carries noise, and
  there are no low-order bits to read (Mironov 2012).

Theorem. For h·s² ≥ 8, X + Y on d coordinates is within total variation distance d·t of a random function of the
  Gaussian mechanism X + N(0, h·s² − 4), where κ(v) = 3·exp(−2π²v) and t = h·`sampler_distance(s²)` + Σ_{0<j<h}
  κ(s²·j/(j+1)) + κ(4).
Proof. (1) Y's samples are near N_Z(s²), by the sampler's proof. (2) Adding N_Z(s²) to N_Z(j·s²) is near N_Z((j+1)s²),
  v = s²·j/(j+1), by the same completion of the square with k = 1. (3) Let R round a real y at random to the integer x
  with probability ∝ exp(−(x−y)²/8). R commutes with integer shifts, so that R(X + N) has the law of X + R(N). For N ~
  N(0, S − 4), P(R(N) = x) = ∫ φ_{S−4}(y)·exp(−(x−y)²/8) / (√(8π)(1 ± η)) dy = φ_S(x)/(1 ± η) with φ_S the density of
  N(0, S) and η ≤ 2.01·exp(−8π²), while N_Z(S) gives x the probability φ_S(x)/(1 ± η): within η/(1−η) ≤ κ(4). ∎
Consequence. Whatever holds for the Gaussian mechanism of variance h·s² − 4 on X, under Poisson sampling and
  composition too, holds here with δ larger by (1 + e^ε)·T·d·t after T releases: it is charged as a Gaussian event.
  Theorem 1 in Kairouz, Liu and Steinke 2021 (arXiv:2102.06387), whose τ has the exponents of (2), bounds the same sum
  in concentrated DP, too weak a statement for PLD and for amplification by sampling; the tests hold the two against
  each other.

Sensitivity. Adding a person moves x by at most C as it stands in memory: its rounding is paid for by a clip that is
  a little below C (the proofs are at the head of `clients/dpsgd/step.py`, and for whole updates in
  `clients/training/private.py`), for any number of vectors. X then moves by at most C/g + √d units: rounding to nearest
  is off by half a unit a coordinate at both ends. One further unit is charged and not needed.
Unit: a person. Adjacency: add or remove one.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.discrete_gaussian import (
    MAX_VARIANCE,
    MIN_VARIANCE,
    Integers,
    discrete_gaussian,
    sampler_distance,
    smoothing,
)
from sovfed.federation.privacy.events import Event
from sovfed.federation.privacy.sampling import Entropy

TAIL: Final = 14  # standard deviations of noise that must fit beside the sum: beyond it lies less than 2^-140
ROUNDING_VARIANCE: Final = 4  # units²: what step (3) of the proof takes from the Gaussian
_LARGEST: Final = 2.0**52


@dataclass(frozen=True)
class Units:
    """The integers in which a sum of vectors of norm ≤ `clip` and length `size` is rounded, noised and released.

    A unit is the power of two in (clip · 2^-(bits+1), clip · 2^-bits].
    """

    clip: float
    size: int
    bits: int = 20

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip) and 2.0**-100 <= self.clip <= 2.0**100):
            raise PrivacyError(f"the clip must be a finite number above 0, got {self.clip!r}")
        if self.size < 1 or not 4 <= self.bits <= 32:
            raise PrivacyError(f"cannot round {self.size} values to {self.bits} bits: at least 1 value, 4 to 32 bits")

    @cached_property
    def exponent(self) -> int:
        """A unit is 2^exponent."""
        return math.frexp(self.clip)[1] - 1 - self.bits

    @cached_property
    def sensitivity(self) -> float:
        """L2 norm, in units, by which one person can move the rounded sum: C/g + √d + 1."""
        return math.nextafter(math.ldexp(self.clip, -self.exponent) + math.sqrt(self.size) + 1, math.inf)

    def quantise(self, total: npt.NDArray[Any]) -> Integers:
        """`total` (shape [size]) in units, rounded to nearest. Raises PrivacyError if not finite, or 2^52 and more."""
        if total.shape != (self.size,):
            raise PrivacyError(f"a sum of shape {total.shape} does not fit the {self.size} values declared")
        scaled = np.ldexp(total.astype(np.float64), -self.exponent)
        if not np.all(np.abs(scaled) < _LARGEST):
            raise PrivacyError("the sum holds a value that is not finite, or too large for its units")
        return np.rint(scaled).astype(np.int64)

    def dequantise(self, integers: Integers) -> npt.NDArray[np.float64]:
        """Back to the scale of the sum, shape [size]."""
        return np.ldexp(integers.astype(np.float64), self.exponent)


def reserved(variance: int, room: int) -> int:
    """The integers that noise of `variance` (units²) may take up in a ring that has a place for `room`.

    Raises PrivacyError if it does not leave three quarters of that to the sum.
    """
    reserve = int(TAIL * variance**0.5) + 1
    if 4 * reserve > room:
        raise PrivacyError(
            f"noise of {variance**0.5:.3g} units does not fit the ring's room of {room}: take fewer grid_bits"
        )
    return reserve


def share_variance(noise_multiplier: float, units: Units, shares: int = 1) -> int:
    """The variance, in units², that each of `shares` institutions adds for an event with this noise multiplier.

    h·s² − 4 ≥ (z·sensitivity)², so that the event is charged with z itself. Raises PrivacyError on a share that is too
    small for the proof (fewer than 4 units: take more bits) or too large.
    """
    if shares < 1 or not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise PrivacyError(f"no noise can be made of multiplier {noise_multiplier!r} in {shares} shares")
    total = (Fraction(noise_multiplier) * Fraction(units.sensitivity)) ** 2 + ROUNDING_VARIANCE
    variance = math.ceil(total / shares)
    if not MIN_VARIANCE <= variance <= MAX_VARIANCE:
        raise PrivacyError(
            f"a share of {math.sqrt(variance):.3g} units of noise is outside {math.isqrt(MIN_VARIANCE)} to 2^40: "
            f"{units.bits} bits do not suit multiplier {noise_multiplier:g} in {shares} shares"
        )
    return variance


def distributed_event(
    variance: int, shares: int, units: Units, sampling_rate: float, count: int = 1
) -> tuple[Event, float]:
    """The event to charge for `count` releases with `shares` honest shares of `variance` units², and T·d·t.

    The distance enters δ by `added_delta`. Raises PrivacyError outside the sampler's range.
    """
    if shares < 1 or not MIN_VARIANCE <= variance <= MAX_VARIANCE:
        raise PrivacyError(f"{shares} shares of {variance} units² cannot be charged")
    multiplier = math.sqrt(shares * variance - ROUNDING_VARIANCE) / units.sensitivity
    each = shares * sampler_distance(variance) + smoothing(ROUNDING_VARIANCE)
    each += sum(smoothing(variance * j / (j + 1)) for j in range(1, shares))
    return Event(multiplier * (1 - 2.0**-50), sampling_rate, count), count * units.size * each


def added_delta(epsilon: float, distance: float) -> float:
    """δ that a total variation distance adds to (ε, δ)-DP: (1 + e^ε)·distance."""
    return (1 + math.exp(epsilon)) * distance


def release(
    total: npt.NDArray[Any], clip: float, noise_multiplier: float, entropy: Entropy = os.urandom, bits: int = 20
) -> npt.NDArray[np.float64]:
    """A sum that no person moves by more than `clip`, with all of an institution's noise: [d], multiples of a unit.

    One release of `Event(noise_multiplier, q)`, where q is the rate at which the vectors' persons were sampled.
    """
    units = Units(clip, total.size, bits)
    noise = discrete_gaussian(total.size, share_variance(noise_multiplier, units), entropy)
    return units.dequantise(units.quantise(total) + noise)
