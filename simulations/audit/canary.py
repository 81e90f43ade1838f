"""A lower bound on ε from one step: 'Privacy auditing with one (1) training run', Steinke, Nasr, Jagielski 2023.

m canaries are persons whose clipped gradient has the whole clip in a coordinate of its own; each is in the step with
probability 1/2. An observer who sees the release guesses who was in it. Gradients come from the shipped `PrivateStep`,
noise from the shipped samplers in h shares.

Two things are held against the guesses. `lower` is a bound on ε of whatever mechanism this is (arXiv:2305.08846,
Theorem 5.2 and Appendix D): it presumes nothing, and sees little. `p_value` presumes what the accountant was told, that
each coordinate's noise is Gaussian, independent of the others', of `noise_multiplier` times the clip: then nobody
guesses more than Φ(1 / 2z) of the canaries right (Dong, Roth, Su 2019, arXiv:1905.02383), each by itself. Too little
noise shows in it, and so does a gradient that is longer than its clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from sovfed.clients.dpsgd.step import PrivateStep
from sovfed.federation.privacy.accounting import epsilon
from sovfed.federation.privacy.discrete_gaussian import discrete_gaussian
from sovfed.federation.privacy.events import Event
from sovfed.federation.privacy.noise import Units, share_variance
from sovfed.federation.privacy.sampling import poisson_sample

DELTA: Final = 1e-5
CONFIDENCE: Final = 0.95
FALSE_ALARM: Final = 1e-3
POWER: Final = 0.99
CLIP: Final = 1.0
SHARES: Final = 7  # of eight institutions, one is feared
GUESSED: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of the canaries, on either side; the bound pays for choosing


@dataclass(frozen=True)
class CanaryAudit:
    """`lower` holds with 95 % confidence: a claim below it is contradicted. `ceiling` is what it is without noise.

    `right` is the share of all canaries that was guessed right, `allowed` what the claimed noise allows; a claim with a
    `p_value` below 1e-3 is contradicted too. `detectable` is the share of the claimed noise from which downwards that
    happens with 99 % probability.
    """

    canaries: int
    claimed: float
    lower: float
    ceiling: float
    right: float
    allowed: float
    p_value: float
    detectable: float

    @property
    def contradicted(self) -> bool:
        return self.lower > self.claimed or self.p_value < FALSE_ALARM


def audit_canaries(
    canaries: int, noise_multiplier: float, *, shares_present: int = SHARES, actual: float | None = None
) -> CanaryAudit:
    """Audit one release at q = 1 that is claimed to have `noise_multiplier`, so the accountant's ε at δ = 1e-5.

    `shares_present` of the shares that were counted on are there, and they are made for `actual` (default: as claimed).
    """
    from scipy.stats import binom, norm

    inside = np.zeros(canaries, dtype=bool)
    inside[poisson_sample(canaries, 0.5)] = True
    scores = _release(np.flatnonzero(inside), canaries, actual or noise_multiplier, shares_present)
    claimed = epsilon([Event(noise_multiplier, 1.0, 1)], DELTA)
    order = np.argsort(scores)
    lower = 0.0
    level = (1 - CONFIDENCE) / len(GUESSED)
    for share in GUESSED:
        count = max(1, int(share * canaries))
        right = int(inside[order[-count:]].sum() + (~inside[order[:count]]).sum())
        lower = max(lower, lower_bound(canaries, 2 * count, right, DELTA, level))
    ceiling = lower_bound(canaries, canaries, canaries, DELTA, level)
    correct, allowed = int(((scores > CLIP / 2) == inside).sum()), float(norm.cdf(1 / (2 * noise_multiplier)))
    needed = binom.isf(FALSE_ALARM, canaries, allowed) + 1
    # The least share of right guesses that passes `needed` 99 times of 100, by the normal approximation.
    spread = math.sqrt(allowed * (1 - allowed) / canaries)
    detectable = 1 / (2 * norm.ppf(needed / canaries + norm.ppf(POWER) * spread)) / noise_multiplier
    return CanaryAudit(
        canaries, claimed, lower, ceiling, correct / canaries, allowed,
        float(binom.sf(correct - 1, canaries, allowed)), float(detectable),
    )  # fmt: skip


def _release(present: np.ndarray, size: int, noise_multiplier: float, shares: int) -> np.ndarray:
    """The noised sum of the present canaries' clipped gradients, shape [size], as `distributed` opens it."""
    module = torch.nn.Linear(size, 1, bias=False)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits[:, 0] * 2.0 + 0.0 * labels

    example = (torch.rand(3, size), torch.zeros(3, dtype=torch.int64))
    step = PrivateStep(module, loss, CLIP, example=example, several_records=False)
    total = torch.zeros(size, dtype=torch.float64)
    for batch in np.array_split(present, max(1, len(present) // 256)):
        features = torch.zeros(len(batch), size)
        features[torch.arange(len(batch)), torch.from_numpy(batch)] = 1.0
        total += step.clipped_sum(
            torch.zeros(size), features, torch.zeros(len(batch), dtype=torch.int64), torch.arange(len(batch))
        )[0]
    units = Units(CLIP, size, 16)
    released = units.quantise(total.numpy())
    for _ in range(shares):
        released += discrete_gaussian(size, share_variance(noise_multiplier, units, SHARES))
    return units.dequantise(released)


def p_value(canaries: int, guesses: int, right: int, epsilon_: float, delta: float) -> float:
    """The greatest probability of `right` or more of `guesses` under (ε, δ)-DP: Theorem 5.2."""
    from scipy.stats import binom

    accuracy = 1 / (1 + math.exp(-epsilon_))
    tail = float(binom.sf(right - 1, guesses, accuracy))
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))
    alpha = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, tail + alpha * delta * 2 * canaries)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, level: float) -> float:
    """The greatest ε that the guesses contradict at `level`."""
    low, high = 0.0, 20.0
    if p_value(canaries, guesses, right, low, delta) >= level:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle, delta) < level else (low, middle)
    return low
