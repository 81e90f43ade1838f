"""Real vectors to words of the ring Z/2^64 and back: weighting, clipping, stochastic rounding, lanes, header.

A word carries 8, 5, 4, 3 or 2 lanes of b = 8, 12, 16, 21 or 32 bits, lane 0 lowest. A value takes
q = b − ⌈log2 cohort⌉ bits and is offset by 2^(q−1), so the honest sum over the cohort cannot leave its lane:
|rounded| ≤ L + 1 with L ≤ 2^(q−1) − 2. Both halves stand here: `quantise` at the institution, `dequantise` at the
coordinator.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sovfed.federation.errors import ServiceError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg.mask import SEGMENT_WORDS, Words

LANES: Final = {8: 8, 12: 5, 16: 4, 21: 3, 32: 2}  # bits → lanes of a word
COARSE: Final = (8, 12)  # bits of a ring whose members keep what rounding takes, and add it to their next update
HEADER_COUNT, HEADER_WEIGHT, HEADER_METRICS = 0, 1, 2  # word positions; the rest of the header is metrics, then zeros
HEADER_UNIT: Final = 8
FRACTION_BITS: Final = 24  # of every metric in the header: a coordinator that chose would read Σ min(nᵢ, 2^k)
METRIC_BITS: Final = 54  # |metric| · 2^fraction_bits ≤ 2^54, so that 255 of them cannot leave 63 bits
WHOLE: Final = {8: np.uint8, 16: np.uint16, 32: np.uint32}  # bits → the type of a lane where the processor has one
LARGEST_ERROR: Final = 10.0  # as is told: beyond it nothing is left of the update
_PART: Final = 1 << 16  # values at a time: the temporaries stay in the L2 cache

Integers: TypeAlias = npt.NDArray[np.int32]

if sys.byteorder != "little":
    raise ServiceError("secure aggregation: words are little-endian, and so must be the processor")


@dataclass(frozen=True)
class Ring:
    """The encoding that all members of a cohort share: lane width, clip per coordinate, W_max and cohort size."""

    bits: int
    clip: float
    max_weight: int
    cohort: int

    @cached_property
    def lanes(self) -> int:
        return LANES[self.bits]

    @cached_property
    def value_bits(self) -> int:
        return self.bits - (self.cohort - 1).bit_length()

    @cached_property
    def half(self) -> int:
        """The offset that makes values unsigned."""
        return 1 << (self.value_bits - 1)

    @cached_property
    def limit(self) -> np.float32:
        """L: the integer that the clip maps to, the largest float32 ≤ 2^(q−1) − 2."""
        nearest = np.float32(self.half - 2)
        return nearest if int(nearest) <= self.half - 2 else np.nextafter(nearest, np.float32(0))

    def words(self, size: int) -> int:
        """Words that a vector of `size` values takes."""
        return -(-size // self.lanes)

    def step(self, total_weight: int) -> float:
        """What 1 in the ring is in the weighted mean."""
        return self.clip / float(self.limit) * self.max_weight / total_weight

    def settles(self, weight: int) -> bool:
        """Whether a member of this weight keeps what rounding takes: in a coarse ring, where that is within the clip.

        Half a step of its own is then two thirds of the clip at most. With fewer records the clip would cut what is
        kept before it comes to half a step, and all be rounded to 0 in every round.
        """
        return self.bits in COARSE and 4 * weight * float(self.limit) >= 3 * self.max_weight

    def relative_error(self, mean: Vector, survivors: int, total_weight: int) -> float:
        """About what share of the mean (its root mean square, shape [d]) is rounding, as who sees the mean can tell.

        A value rounded at random errs by a sixth of a step squared on average, and not at all if it is zero: a place
        whose sum is 0 counts as one that nobody moved. Updates far below a step give about 1 or more; in a coarse ring
        they are all rounded to 0.
        """
        if self.bits in COARSE and mean.size and not mean.any():
            return LARGEST_ERROR
        square = float(np.dot(mean, mean))
        noise = np.count_nonzero(mean) * survivors * self.step(total_weight) ** 2 / 6
        return math.sqrt(noise / max(square - noise, square / LARGEST_ERROR**2)) if square > 0 else 0.0


def header_size(metrics: int) -> int:
    """Words of a header with `metrics` metrics: count, weight, metrics, and zeros up to a multiple of 8."""
    return -(-(HEADER_METRICS + metrics) // HEADER_UNIT) * HEADER_UNIT


def saturated(values: npt.NDArray[Any], bound: float) -> npt.NDArray[Any]:
    """`values` cut to ±bound, and 0 where they are no number: what a sum gets of them, since a refusal would tell."""
    if np.abs(values).max(initial=0.0) <= bound:
        return values
    cut: npt.NDArray[Any] = np.clip(np.nan_to_num(values, nan=0.0), -bound, bound)
    return cut


def metric_bound(fraction_bits: int) -> float:
    """The largest metric that the header has a place for."""
    return 2.0 ** (METRIC_BITS - fraction_bits)


def pack_header(weight: int, metrics: Sequence[float], fraction_bits: int) -> Words:
    """[1, weight, metrics as fixed point modulo 2^64, zeros]; a metric that does not fit is saturated."""
    fitting = saturated(np.array(metrics, np.float64), metric_bound(fraction_bits)).tolist()
    words = [1, weight, *(round(metric * 2.0**fraction_bits) % 2**64 for metric in fitting)]
    return np.array(words + [0] * (header_size(len(metrics)) - len(words)), np.uint64)


def unpack_metrics(header: Words, metrics: int, fraction_bits: int) -> npt.NDArray[np.float64]:
    """The sums of the metrics, shape [metrics]."""
    words = header[HEADER_METRICS : HEADER_METRICS + metrics].view(np.int64)
    return np.ldexp(words.astype(np.float64), -fraction_bits)


class Quantiser:
    """Turns a segment's share of `update` into words; one per thread, since it owns the temporaries.

    A float32 update is weighted, clipped and rounded; an int32 one is taken as it is. `key` seeds the stochastic
    rounding. No value makes this fail, for a failure would be seen: what is not finite counts as 0, an integer is cut
    to its lane. The weight, from 1 to W_max, is the caller's to saturate. `clipped` counts the values that the clip
    changed.

    With `owed`, a vector like a float32 update, values are rounded to the nearest, and what that takes from each is put
    there: added to the next update it is sent after all, so sums over rounds err by half a step in all.
    """

    def __init__(
        self, ring: Ring, update: Vector | Integers, weight: int, key: bytes, owed: Vector | None = None
    ) -> None:
        if not 1 <= weight <= ring.max_weight:
            raise ValueError(f"weight {weight} is outside 1 to {ring.max_weight}")
        self._ring = ring
        self._update: npt.NDArray[Any] = update
        share = weight / ring.max_weight
        self._factor = np.float32(float(ring.limit) / ring.clip * share)
        self._bound = min(np.float32(float(ring.limit) * share), ring.limit)
        block_size = min(_PART, update.size)
        self._owed = owed
        self._dither = np.full(block_size, 0.5, np.float32) if owed is not None else _dither(key, block_size)
        self._scaled = np.empty(block_size, np.float32)
        self._integers = np.empty(0 if ring.bits in WHOLE else block_size, np.uint32)
        self.clipped = 0

    def quantise(self, segment: int, out: Words) -> None:
        """Write the segment's packed values to `out`."""
        ring = self._ring
        first = segment * SEGMENT_WORDS * ring.lanes
        values = self._update[first : first + out.size * ring.lanes]
        direct = out.view(WHOLE[ring.bits]) if ring.bits in WHOLE else None
        step = _PART // ring.lanes * ring.lanes
        for start in range(0, values.size, step):
            block = values[start : start + step]
            integers = self._integers[: block.size] if direct is None else direct[start : start + block.size]
            if block.dtype == np.float32:
                self._round(block, integers)
                if self._owed is not None:
                    self._keep(integers, self._owed[first + start :][: block.size])
            else:
                self._offset(block, integers)
            if direct is None:
                pack(integers, ring.bits, out[start // ring.lanes :][: ring.words(block.size)])
        if direct is not None:
            direct[values.size :] = 0

    def _offset(self, values: Integers, out: npt.NDArray[Any]) -> None:
        """Integers are packed as they are; one that could leave its lane is cut to it."""
        bound = self._ring.half - 2
        if values.size and max(int(values.max()), -int(values.min())) > bound:
            values = np.clip(values, -bound, bound)
        np.copyto(out, values.view(np.uint32), casting="unsafe")
        np.add(out, out.dtype.type(self._ring.half), out=out)

    def _round(self, values: Vector, out: npt.NDArray[Any]) -> None:
        """⌊factor · value + u⌋ + offset with u uniform on [0, 1), so that its mean is the value.

        Every part uses the same 65,536 u: the error of each value is what it would be with u of its own, only values
        that stand whole parts apart in one institution's vector err together.
        """
        low, high = float(np.minimum.reduce(values)), float(np.maximum.reduce(values))  # both NaN if any value is
        scaled, clip = self._scaled[: values.size], np.float32(self._ring.clip)
        if not (math.isfinite(low) and math.isfinite(high)):
            self.clipped += int(np.count_nonzero(~np.isfinite(values)))
            values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
            low, high = float(values.min()), float(values.max())
        beyond = max(high, -low) > clip * (1 - 2**-20)  # otherwise rounding cannot leave the bound
        if beyond:
            self.clipped += int(np.count_nonzero(np.abs(values) > clip))
            values = np.clip(values, -clip, clip, out=scaled)
        np.multiply(values, self._factor, out=scaled)
        if beyond:
            np.clip(scaled, -self._bound, self._bound, out=scaled)
        np.add(scaled, self._dither[: values.size], out=scaled)
        np.floor(scaled, out=out.view(f"i{out.itemsize}"), casting="unsafe")
        np.add(out, out.dtype.type(self._ring.half), out=out)

    def _keep(self, integers: npt.NDArray[Any], owed: Vector) -> None:
        """Write what the last `_round` took from its values to `owed`."""
        scaled, rounded = self._scaled[: owed.size], integers.astype(np.float32)
        np.subtract(scaled, rounded - np.float32(self._ring.half - 0.5), out=owed)
        np.divide(owed, self._factor, out=owed)


def _dither(key: bytes, size: int) -> Vector:
    """Uniform on [0, 1), shape [size]."""
    random = AESGCM(key).encrypt(bytes(12), bytes(2 * size), None)
    uniform: Vector = np.frombuffer(random, np.uint16, size) * np.float32(2**-16)
    return uniform


def pack(values: npt.NDArray[np.uint32], bits: int, out: Words) -> None:
    """Write `values` (each below 2^bits) to `out`, lane by lane; lanes beyond the last value are zero."""
    if bits in WHOLE:
        lanes = out.view(WHOLE[bits])
        lanes[values.size :] = 0
        np.copyto(lanes[: values.size], values, casting="unsafe")
        return
    out[:] = 0
    for lane in range(LANES[bits]):
        own = values[lane :: LANES[bits]].astype(np.uint64)
        np.left_shift(own, np.uint64(lane * bits), out=own)
        out[: own.size] |= own


def unpack(words: Words, bits: int, size: int) -> npt.NDArray[Any]:
    """The first `size` lanes of `words`, as integers of that width where there are such (a view), else as uint32."""
    if bits in WHOLE:
        return words.view(WHOLE[bits])[:size]
    values = np.empty((words.size, LANES[bits]), np.uint32)
    for lane in range(LANES[bits]):
        values[:, lane] = (words >> np.uint64(lane * bits)) & np.uint64((1 << bits) - 1)
    return values.reshape(-1)[:size]


def dequantise(ring: Ring, words: Words, size: int, survivors: int, total_weight: int) -> Vector:
    """Σ n_i Δ_i / Σ n_i, shape [size], from the unmasked sum over `survivors` members.

    With lanes of 32 bits it takes the place of the sum, in the memory of `words`.
    """
    mean = words.view(np.float32)[:size] if ring.bits == 32 else np.empty(size, np.float32)
    scale = np.float32(ring.clip / float(ring.limit) * ring.max_weight / total_weight)
    for block, centred in _centred(ring, words, mean, survivors):
        np.copyto(block, centred, casting="unsafe")
        np.multiply(block, scale, out=block)
    return mean


def integer_sums(ring: Ring, words: Words, size: int, survivors: int) -> npt.NDArray[np.int64]:
    """Σ of the members' integers, shape [size], from the unmasked sum over `survivors` members."""
    sums = np.empty(size, np.int64)
    for block, centred in _centred(ring, words, sums, survivors):
        np.copyto(block, centred)
    return sums


def _centred(
    ring: Ring, words: Words, out: npt.NDArray[Any], survivors: int
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Parts of `out` and the signed lanes that belong there, the members' offsets taken off."""
    step = _PART // ring.lanes
    for start in range(0, words.size, step):
        block = out[start * ring.lanes :][: step * ring.lanes]
        sums = unpack(words[start : start + step], ring.bits, block.size)
        centred = sums - sums.dtype.type(survivors * ring.half)  # modulo its width; |centred| < 2^(b−1)
        yield block, centred.view(f"i{sums.itemsize}")
