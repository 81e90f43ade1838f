from __future__ import annotations

import os
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovfed.federation.errors import ProtocolError
from sovfed.federation.secagg.shares import divide, interpolate, multiply, split


def test_field_is_a_field() -> None:
    assert multiply(0x57, 0x83) == 0xC1  # FIPS 197, section 4.2
    for a in range(1, 256):
        assert multiply(a, 1) == a and multiply(a, 0) == 0
        assert multiply(divide(1, a), a) == 1


@pytest.mark.parametrize(("threshold", "holders"), [(1, 1), (2, 3), (3, 4), (4, 5), (5, 6)])
def test_every_quorum_gives_the_secret_back(threshold: int, holders: int) -> None:
    secret = os.urandom(32)
    shares = split(secret, threshold, holders, os.urandom)
    for quorum in combinations(range(holders), threshold):
        assert interpolate({holder: shares[holder] for holder in quorum}) == secret


@given(secret=st.binary(min_size=1, max_size=8), other=st.binary(min_size=1, max_size=8))
def test_fewer_than_the_threshold_fit_every_secret(secret: bytes, other: bytes) -> None:
    """Whatever t − 1 holders hold, every secret of that length has one polynomial through it: they know nothing."""
    other = other[: len(secret)].ljust(len(secret), b"\0")
    shares = split(secret, 3, 4, os.urandom)
    known = {0: shares[0], 1: shares[1]}
    third = interpolate({-1: other, **known}, 3)  # holder −1 stands at 0: the secret itself
    assert interpolate({**known, 2: third}) == other


def test_shares_of_a_constant_secret_are_uniform() -> None:
    """χ² of the first share's bytes over 256 values: 255 degrees of freedom, mean 255, deviation 22.6."""
    counts = [0] * 256
    for _ in range(200):
        for byte in split(bytes(64), 2, 3, os.urandom)[0]:
            counts[byte] += 1
    expected = 200 * 64 / 256
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    assert 255 - 6 * 22.6 < chi_square < 255 + 6 * 22.6


@pytest.mark.parametrize(("threshold", "holders"), [(0, 3), (4, 3), (2, 256)])
def test_impossible_thresholds_are_refused(threshold: int, holders: int) -> None:
    with pytest.raises(ProtocolError, match="threshold"):
        split(b"secret", threshold, holders, os.urandom)
