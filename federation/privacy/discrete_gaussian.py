"""Discrete Gaussian noise: fast, from a CSPRNG, and with a proven distance to the distribution that it stands for.

N_Z(V) is the distribution on the integers with P(x) ∝ w_V(x) = exp(−x²/2V); V is called its variance (it is, to 1e-30,
for V ≥ 4). TV is total variation distance. Every sample costs TV ≤ `sampler_distance(V)` < 2^-110, as follows.

Split. While V > 2^17, a sample of N_Z(V) is k·A + B with k = 64, B ~ N_Z(F), F = 6k², A ~ N_Z((V − F)/k²).
  Completing the square, P(kA + B = x) ∝ w_V(x) · Σ_y exp(−(y − c_x)²/2v) with v = (V − F)·F/(k²V), and by Poisson
  summation the sum is √(2πv)·(1 ± η) with η = 2Σ_{m≥1} exp(−2π²vm²) ≤ 2.01·exp(−2π²v) for v ≥ 1. The law of kA + B
  is therefore N_Z(V) times a factor in [(1−η)/(1+η), (1+η)/(1−η)]; its TV to N_Z(V) is η/(1−η) ≤ 3·exp(−2π²v) =: κ(v).
  (Peikert 2010, Theorem 3.1, and Micciancio and Walter 2017, for the plane case.) Here v > 4.8 and κ < 2^-134.
Tail. E exp(tX) = exp(t²V/2)·Σ_x w_V(x − tV)/Σ_x w_V(x) ≤ exp(t²V/2), since by Poisson summation the shifted sum is
  largest where the shift is an integer; so P(|X| > m) ≤ 2·exp(−(m+1)²/2V) (Canonne, Kamath, Steinke 2020). A table
  ends where that is at most 2^-120, which is then its TV to N_Z(V).
Table. The table inverts the CDF: the value is the number of thresholds ⌊2^128·F(i)⌋ that are ≤ U, with U uniform on
  128 bits. F is computed with 60 decimal digits by `decimal`, whose exp is correctly rounded; over at most 9,400 terms
  its error stays below 2^-180: each probability is off by at most (1 + 2^-50)·2^-128, and TV ≤ (m+1)·2^-128 < 2^-115.
Sum. TV is subadditive over independent parts and does not grow under maps: the distances add up.

U is drawn lazily. 16 bits pick a cell; a cell without a threshold inside already decides the value, and only the others
(2 to 5 %) draw 112 bits more. The value is a function of U alone, so laziness changes its cost and not its law. Which
values take longer depends on the noise: time is not among what this module protects.
"""

from __future__ import annotations

import bisect
import functools
import math
import os
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.sampling import Entropy, Keystream

Integers: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]
MIN_VARIANCE: Final = 16
MAX_VARIANCE: Final = 2**80
_SHIFT: Final = 6
RADIX: Final = 1 << _SHIFT
FINE_VARIANCE: Final = Fraction(6 * RADIX**2)
_TABLE_VARIANCE: Final = 2**17
_TAIL_NATS: Final = 121 * math.log(2)  # 2·exp(−121·ln 2) = 2^-120
_DIGITS: Final = Context(prec=60)
_CHUNK: Final = 1 << 15
_NARROW_LEVELS: Final = 3  # 32 bits hold a coarse value and three fine ones: 4,700 · 64³ < 2^31
_NO_DIGITS: Final = np.empty(0, np.int16)
_OPEN: Final = 1 << 14  # above every value of a table


@dataclass(frozen=True)
class _Table:
    """N_Z(V) cut at ±reach, as the CDF's thresholds on 128 bits and what 16 bits already tell."""

    reach: int
    cells: npt.NDArray[np.int16]  # [2^16]: the cell's least value, plus _OPEN where a threshold lies inside
    thresholds: list[int]  # ascending
    high: npt.NDArray[np.uint64]  # their upper halves, and the largest word at the end

    def decide(self, least: npt.NDArray[np.int16], cells: npt.NDArray[np.uint16], more: Words) -> Integers:
        """Values for U = cell ‖ 48 low bits of `more[:, 0]` ‖ `more[:, 1]`; shapes [n], [n] and [n, 2].

        One threshold in a cell is the rule, and a tie in the upper half has a probability below 2^-50.
        """
        upper = cells.astype(np.uint64) << np.uint64(48) | more[:, 0] & np.uint64(2**48 - 1)
        index = least.astype(np.int64) + self.reach
        index += self.high[index] <= upper
        crowded = np.flatnonzero(self.high[index] <= upper)
        index[crowded] = np.searchsorted(self.high[:-1], upper[crowded], side="right")
        for tie in np.flatnonzero(self.high[index - 1] == upper):  # index 0 meets the largest word
            index[tie] = bisect.bisect_right(self.thresholds, int(upper[tie]) << 64 | int(more[tie, 1]))
        return index - self.reach


@functools.lru_cache(maxsize=32)
def _table(variance: Fraction) -> _Table:
    reach = math.ceil(math.sqrt(2 * _TAIL_NATS * variance))
    twice = _DIGITS.divide(Decimal(2 * variance.numerator), Decimal(variance.denominator))
    weights = [_DIGITS.exp(_DIGITS.divide(Decimal(-x * x), twice)) for x in range(reach + 1)]
    sums, total = [], Decimal(0)
    for x in range(-reach, reach + 1):
        total = _DIGITS.add(total, weights[abs(x)])
        sums.append(total)
    scale = _DIGITS.divide(Decimal(2**128), total)
    thresholds = [int(_DIGITS.multiply(partial_sum, scale)) for partial_sum in sums[:-1]]
    high = np.array([*(threshold >> 64 for threshold in thresholds), 2**64 - 1], np.uint64)
    cells = np.searchsorted(high[:-1], np.arange(2**16, dtype=np.uint64) << np.uint64(48)) - reach
    cells[np.unique(high[:-1] >> np.uint64(48))] += _OPEN
    return _Table(reach, cells.astype(np.int16), thresholds, high)


def _levels(variance: int) -> list[Fraction]:
    """Variances of the tables, coarse to fine: all but the first are FINE_VARIANCE."""
    coarse, levels = Fraction(variance), list[Fraction]()
    while coarse > _TABLE_VARIANCE:
        coarse = (coarse - FINE_VARIANCE) / RADIX**2
        levels.append(FINE_VARIANCE)
    return [coarse, *levels]


def smoothing(variance: float) -> float:
    """κ(v) = 3·exp(−2π²v), v ≥ 1: a bound on TV(kA + B, N_Z(k²V_A + V_B)) with v = V_A·V_B/(k²V_A + V_B)."""
    return 3 * math.exp(-2 * math.pi**2 * variance)


def sampler_distance(variance: int) -> float:
    """A bound on TV(a sample of `discrete_gaussian(…, variance)`, N_Z(variance)); the proof heads this module."""
    coarse, *fine = _levels(variance)
    distance = 0.0
    for level in (coarse, *fine):
        distance += 2.0**-120 + (math.sqrt(2 * _TAIL_NATS * level) + 2) * 2.0**-128
    for level in fine:
        sum_of_both = RADIX**2 * coarse + level
        distance += smoothing(float(coarse * level / sum_of_both))
        coarse = sum_of_both
    return distance


def discrete_gaussian(size: int, variance: int, entropy: Entropy = os.urandom) -> Integers:
    """`size` independent samples of N_Z(variance), variance in units², 16 to 2^80. Raises PrivacyError outside."""
    if not MIN_VARIANCE <= variance <= MAX_VARIANCE:
        raise PrivacyError(f"a noise variance of {variance} units² is outside {MIN_VARIANCE} to 2^80")
    coarse, *fine = _levels(variance)
    stream, result = Keystream(entropy), np.empty(size, np.int64)
    for start in range(0, size, _CHUNK):
        out = result[start : start + _CHUNK]
        total: npt.NDArray[np.int32] | Integers = _draw(_table(coarse), stream, out.size).astype(np.int32)
        digits = _draw(_table(FINE_VARIANCE), stream, len(fine) * out.size) if fine else _NO_DIGITS
        for level, values in enumerate(digits.reshape(len(fine), out.size)):
            if level == _NARROW_LEVELS:
                total = total.astype(np.int64)
            np.left_shift(total, _SHIFT, out=total)
            np.add(total, values, out=total)
        out[:] = total
    return result


def _draw(table: _Table, stream: Keystream, size: int) -> npt.NDArray[np.int16]:
    bits, values = np.empty(size, "<u2"), np.empty(size, np.int16)
    stream.fill(bits)
    np.take(table.cells, bits, out=values, mode="wrap")
    undecided = np.flatnonzero(values > _OPEN // 2)
    more = np.empty((undecided.size, 2), "<u8")
    stream.fill(more)
    values[undecided] = table.decide(values[undecided] - np.int16(_OPEN), bits[undecided], more)
    return values
