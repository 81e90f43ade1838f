"""Goldfish loss: the same tokens of a passage never count, so a model cannot learn the passage by heart.

Hans et al. 2024, arXiv:2406.10209, equation 1 with the hashed mask: whether a token is left out follows from the tokens
before it alone, so wherever a passage stands, and however often, the same tokens of it are left out. Of phrases that
every text has, too: those tokens are never learnt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

PRECEDING: Final = 13  # tokens that decide, as in the paper; the fewer there are before a token, the fewer decide
MULTIPLIERS: Final = (-7046029254386353131, -4658895280553007687, -7723592293110705685)  # odd; splitmix64's
SHIFTS: Final = (30, 27, 31)


def weights(windows: Tensor, k: int) -> Tensor:
    """What each token but the first of `windows` [n, t + 1] counts, [n, t]: 0 for one in `k`, else k / (k − 1).

    A loss that is weighted so has the length that it has without, in expectation. Raises ValueError if `k` < 2.
    """
    if k < 2:
        raise ValueError(f"one token in {k} is left out, expected one in 2 or more")
    return (_hashed(windows[..., :-1].long()) % k != 0) * (k / (k - 1))


def _hashed(codes: Tensor) -> Tensor:
    """A number of 31 bits for each place, of its token and the twelve before: int64 [n, t] → the same.

    Token 0, which begins a document and fills up short windows, is as if there were none.
    """
    length = codes.shape[-1]
    mixed = torch.zeros_like(codes)
    for lag in reversed(range(min(PRECEDING, length))):
        mixed = mixed * MULTIPLIERS[0] + functional.pad(codes, (lag, 0))[..., :length]
    for shift, multiplier in zip(SHIFTS, (*MULTIPLIERS[1:], 1), strict=True):
        mixed = (mixed ^ _right(mixed, shift)) * multiplier
    return _right(mixed, 33)


def _right(values: Tensor, shift: int) -> Tensor:
    """`values`, as 64 bits without a sign, by `shift` bits to the right."""
    return (values >> shift) & ((1 << (64 - shift)) - 1)
