"""Shamir's secret sharing over GF(256), byte by byte: holder h gets the polynomial's value at h + 1.

The field is AES's (x⁸ + x⁴ + x³ + x + 1, generator 3). Multiplying a whole string by a constant is one
`bytes.translate` with that constant's row of the product table, which is faster than a gather in numpy (0.5 against
1.3 µs for 1 KiB). Tables make the time depend on the cache, hence on secrets, for whoever shares this machine's core.

Source: Shamir 1979, "How to share a secret".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache

import numpy as np

from sovfed.federation.errors import ProtocolError
from sovfed.federation.secagg.keys import Entropy

MAX_HOLDERS = 255


def _powers() -> tuple[list[int], list[int]]:
    exponential, logarithm, value = [0] * 510, [0] * 256, 1
    for exponent in range(255):
        exponential[exponent] = exponential[exponent + 255] = value
        logarithm[value] = exponent
        value ^= (value << 1) ^ (0x11B if value & 0x80 else 0)  # times the generator, 3
    return exponential, logarithm


_EXP, _LOG = _powers()


def multiply(a: int, b: int) -> int:
    """a · b in GF(256)."""
    return _EXP[_LOG[a] + _LOG[b]] if a and b else 0


def divide(a: int, b: int) -> int:
    """a / b in GF(256), b ≠ 0."""
    return _EXP[_LOG[a] - _LOG[b] + 255] if a else 0


@cache
def _row(factor: int) -> bytes:
    """The table that `bytes.translate` multiplies by `factor` with."""
    return bytes(multiply(factor, value) for value in range(256))


def _combine(strings: list[bytes], factors: list[int]) -> bytes:
    """Σ factor · string."""
    products = b"".join([string.translate(_row(factor)) for string, factor in zip(strings, factors, strict=True)])
    total: bytes = np.bitwise_xor.reduce(np.frombuffer(products, np.uint8).reshape(len(strings), -1)).tobytes()
    return total


def split(secret: bytes, threshold: int, holders: int, entropy: Entropy) -> list[bytes]:
    """`holders` shares as long as `secret`; any `threshold` of them give it back, fewer tell nothing.

    The first `threshold` − 1 shares are random and the polynomial through them and the secret gives the rest. That is
    as uniform as random coefficients, and at t = ⌊2n/3⌋ + 1 costs a third of the products.
    """
    if not 1 <= threshold <= holders <= MAX_HOLDERS:
        raise ProtocolError(f"threshold {threshold} of {holders} holders, expected 1 to {MAX_HOLDERS}")
    size, nodes = len(secret), tuple(range(threshold))
    random = entropy(size * (threshold - 1))
    free = [random[k * size : (k + 1) * size] for k in range(threshold - 1)]
    derived = [_combine([secret, *free], _weights(nodes, holder + 1)) for holder in range(threshold - 1, holders)]
    return free + derived


def interpolate(shares: Mapping[int, bytes], point: int = 0) -> bytes:
    """The polynomial through `shares` (holder → share) at `point`: 0 gives the secret, h + 1 holder h's share."""
    return _combine(list(shares.values()), _weights(tuple(holder + 1 for holder in shares), point))


@lru_cache(512)
def _weights(nodes: tuple[int, ...], point: int) -> list[int]:
    """Lagrange's: Π (point − m) / (node − m) over the other nodes m, subtraction being XOR."""
    weights = []
    for node in nodes:
        weight = 1
        for peer in nodes:
            if peer != node:
                weight = multiply(weight, divide(point ^ peer, node ^ peer))
        weights.append(weight)
    return weights
