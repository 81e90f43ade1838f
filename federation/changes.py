"""How a model has changed, in 16 bits a value: what goes down to an institution that holds the model before.

BLOCK values share a step, a power of two: a value is a whole number of up to ±LARGEST steps. Both sides add the same
float32 numbers with one rounding each, so what comes of it is the same to the bit on every machine. The agency goes on
from that model too, and keeps what rounding took for the next change (`server/strategies/rounded.py`).

A change of d values is 2 · d + ⌈d / BLOCK⌉ bytes: d little-endian int16, then a byte for each block, its step's
exponent + OFFSET.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.errors import ProtocolError, TrainingError
from sovfed.federation.vectors import MAX_PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.vectors import Bytes, Vector

BLOCK: Final = 4096
LARGEST: Final = 32_767
OFFSET: Final = 126  # the smallest step is the smallest normal float32: no machine's arithmetic differs there
MOST_EXPONENT: Final = 100
_PIECE: Final = 16 * BLOCK  # values that are worked on at once
_BITS: Final = 15  # of a value beside its sign


def change_size(values: int) -> int:
    """Bytes of a change of so many values."""
    return 2 * values + -(-values // BLOCK)


MOST_VALUES: Final = (
    MAX_PARAMETERS - MAX_PARAMETERS // BLOCK - 1
) // 2  # whose change is no longer than a vector may be


def change_of(difference: Vector) -> Bytes:
    """`difference` (shape [d]) in 16 bits a value. Raises TrainingError unless all of it is finite."""
    change = np.empty(change_size(difference.size), np.uint8)
    values, exponents = _parts(change, difference.size)
    for piece, blocks in _pieces(difference.size):
        padded = np.zeros((blocks.stop - blocks.start, BLOCK), np.float32)
        padded.reshape(-1)[: piece.stop - piece.start] = difference[piece]
        largest = np.abs(padded).max(axis=1)
        _, exponent = np.frexp(largest)
        if not np.isfinite(largest).all() or exponent.max() - _BITS > MOST_EXPONENT:
            raise TrainingError("the next model is not finite; is the learning rate too high?")
        exponent = np.maximum(exponent - _BITS, -OFFSET).astype(np.int32)
        steps = np.rint(np.ldexp(padded, -exponent[:, None])).clip(-LARGEST, LARGEST)
        values[piece] = steps.reshape(-1)[: piece.stop - piece.start]
        exponents[blocks] = exponent + OFFSET
    return change


def changed(base: Vector, change: Bytes) -> Vector:
    """`base` (shape [d]) with `change` added, which may be too large for a float32.

    Raises ProtocolError for what is no change of d values.
    """
    if change.size != change_size(base.size):
        raise ProtocolError(
            f"a change of {change.size} bytes, expected {change_size(base.size)} for {base.size} values"
        )
    values, exponents = _parts(change, base.size)
    if exponents.max(initial=0) > OFFSET + MOST_EXPONENT:
        raise ProtocolError("a change by more than a value may be")
    model = np.empty(base.size, np.float32)
    for piece, blocks in _pieces(base.size):
        step = np.ldexp(np.float32(1), exponents[blocks].astype(np.int32) - OFFSET)
        moved = values[piece].astype(np.float32)
        moved *= np.repeat(step, BLOCK)[: moved.size]
        with np.errstate(over="ignore"):
            np.add(base[piece], moved, out=model[piece])
    return model


def _parts(change: Bytes, size: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int16]], Bytes]:
    """The values [d] and the exponents [⌈d / BLOCK⌉] as views of `change`."""
    return change[: 2 * size].view("<i2"), change[2 * size :]


def _pieces(size: int) -> Iterator[tuple[slice, slice]]:
    """Values and blocks that are worked on together."""
    for start in range(0, size, _PIECE):
        end = min(start + _PIECE, size)
        yield slice(start, end), slice(start // BLOCK, -(-end // BLOCK))
