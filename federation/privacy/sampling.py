"""Random bits for privacy; the Poisson sample of persons, and some of each one's records, drawn from them.

Every call that draws takes 32 fresh bytes from `entropy` as the key of an AES-256-CTR keystream: no state outlives the
call, so a forked process, a restored machine image or a second thread cannot repeat noise. `entropy` is `os.urandom`
but in known-answer tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sovfed.federation.errors import PrivacyError

Entropy: TypeAlias = Callable[[int], bytes]
KEY_BYTES: Final = 32
_CHUNK: Final = 1 << 15  # persons at a time: 256 KiB of keystream stay in the L2 cache
_ZEROS: Final = memoryview(bytes(8 * _CHUNK))


class Keystream:
    """AES-256-CTR from counter 0, read as little-endian words, in order."""

    def __init__(self, entropy: Entropy) -> None:
        key = entropy(KEY_BYTES)
        if len(key) != KEY_BYTES:
            raise PrivacyError(f"the entropy source gave {len(key)} bytes, expected {KEY_BYTES}")
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def fill(self, words: npt.NDArray[Any]) -> None:
        """Overwrite the contiguous `words` with the next bytes of the stream."""
        out = words.reshape(-1).view(np.uint8).data
        for start in range(0, out.nbytes, len(_ZEROS)):
            block = out[start : start + len(_ZEROS)]
            self._cipher.update_into(_ZEROS[: len(block)], block)


def poisson_sample(persons: int, rate: float, entropy: Entropy = os.urandom) -> npt.NDArray[np.int64]:
    """Ascending indices in [0, persons), each there independently with probability ⌊rate · 2^64⌋ / 2^64.

    That is at most `rate` and less than 2^-64 below it; amplification by sampling is monotone in the rate, so what is
    charged for `rate` covers it. A rate of 1 takes everybody. The sample may be empty, and its size is private.
    Raises PrivacyError unless persons ≥ 0 and 0 < rate ≤ 1.
    """
    if persons < 0 or not 0 < rate <= 1:
        raise PrivacyError(f"cannot sample {persons} persons at rate {rate}: the rate must lie in (0, 1]")
    if rate == 1:
        return np.arange(persons, dtype=np.int64)
    threshold = np.uint64(int(Fraction(rate) * 2**64))
    stream, words = Keystream(entropy), np.empty(min(persons, _CHUNK), "<u8")
    sampled = [np.empty(0, np.int64)]
    for start in range(0, persons, _CHUNK):
        block = words[: persons - start]
        stream.fill(block)
        sampled.append(np.flatnonzero(block < threshold) + start)
    return np.concatenate(sampled)


def at_most(owners: npt.NDArray[np.int64], most: int, entropy: Entropy = os.urandom) -> npt.NDArray[np.int64]:
    """Ascending places of `most` records of each owner, drawn evenly, or of all it has; `owners` is each record's.

    One person's draw depends on nothing of another's, so it changes no bound on what a person moves a clipped sum by.
    Raises PrivacyError unless most ≥ 1.
    """
    if most < 1:
        raise PrivacyError(f"cannot draw {most} records of a person: at least one")
    keys = np.empty(len(owners), "<u8")
    Keystream(entropy).fill(keys)
    order = np.lexsort((keys, owners))
    sorted_owners = owners[order]
    begins = np.flatnonzero(np.diff(sorted_owners, prepend=sorted_owners[:1] - 1))
    turns = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    return np.sort(order[turns < most])
