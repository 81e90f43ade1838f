"""A release as the accountant sees it: a Gaussian mechanism on a Poisson sample of persons, some number of times."""

from __future__ import annotations

from dataclasses import dataclass

from sovfed.federation.schema import bounded


@dataclass(frozen=True, order=True)
class Event:
    """`count` releases of Σ clip_C(g) + N(0, (zC)²) over persons sampled independently with probability q.

    z is `noise_multiplier`, q is `sampling_rate` (1: everybody, no amplification). Adjacency: add or remove one person.
    """

    noise_multiplier: float = bounded(low=1e-3, high=1e6)
    sampling_rate: float = bounded(low=1e-9, high=1.0)
    count: int = bounded(low=1, high=10**9)
