"""Differential privacy and secure aggregation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sovfed.federation.schema import bounded, choice

LANE_BITS: Final = (8, 12, 16, 21, 32)  # of a word of the ring; federation/secagg/ring.py
SECURE_COHORT: Final = 3  # of two, one colluder learns the other's update from the sum
ANNUAL_EPSILON: Final = 3.0  # what an institution's policy begins with: most ε within 366 days
SHARE_PER_RUN: Final = 0.5  # of it that one run may reserve
USUAL_DELTA: Final = 1e-6


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy for persons: the mechanism, its target over all rounds, and public constants.

    Nothing is counted from the records: `population` and what follows from it are declared.
    """

    mechanism: str = choice(
        "none",
        ("none", "distributed", "silo", "institution"),
        doc="distributed: shares of the noise, added up by secure aggregation, one gradient step a round; silo: each "
        "institution adds all the noise itself, several steps a round; institution: whole updates, clipped and noised",
    )
    epsilon: float = bounded(
        SHARE_PER_RUN * ANNUAL_EPSILON, 0.01, 100.0,
        doc="target over all rounds; by default a policy lets one run take half of its 3 a year",
    )  # fmt: skip
    delta: float = bounded(USUAL_DELTA, 1e-12, 1e-2, doc="a power of ten; the institutions' policies must say the same")
    noise_multiplier: float | None = bounded(None, 0.05, 1e6, doc="null: calibrated to epsilon over all planned steps")
    clip: float = bounded(1.0, 1e-6, 1e6, doc="L2 bound on a person's gradient; on the update for 'institution'")
    sampling_rate: float = bounded(0.1, 1e-6, 1.0, doc="probability of each person to be in a step")
    population: int = bounded(
        1_000, 1, 10**10, unit="persons", doc="declared public number of persons in training, all institutions together"
    )
    person_records: int = bounded(
        0, 0, 100_000, unit="records", doc="most records of a person in a step, drawn anew for each; 0: all of them"
    )
    local_steps: int = bounded(10, 1, 10_000, doc="private steps of each institution in a round; 'silo' only")
    spare_steps: int = bounded(2, 0, 10_000, doc="steps granted beyond the planned, to repeat what a crash has cost")
    colluders: int = bounded(1, 0, 254, doc="institutions that may side with the agency: their noise is not counted on")
    grid_bits: int = bounded(16, 8, 24, unit="bits", doc="resolution of a clipped gradient in the ring")

    @property
    def private(self) -> bool:
        return self.mechanism != "none"


@dataclass(frozen=True)
class SecaggConfig:
    """Secure aggregation: the coordinator sees sums over the cohort, and no institution's own update or metric."""

    enabled: bool = bounded(True, doc="false: the server sees each institution's update; their policies must allow it")
    bits: int = bounded(
        32, 8, 32, unit="bits",
        doc="ring lane of a parameter: 8, 12, 16, 21 or 32; fewer are coarser; with 8 and 12, what rounding takes "
        "is sent with the next update",
    )  # fmt: skip
    clip: float = bounded(
        8.0, 1e-6, 1e3, doc="bound on each value of an update; one with a value beyond it is shrunk as a whole"
    )
    max_weight: int = bounded(
        10_000, 1, 2**48, unit="records", doc="most records of one institution; one with more counts as so many"
    )
    max_error: float = bounded(
        0.5,
        1e-6,
        1e3,
        doc="share of the mean update that rounding may be in the first round; a run with more ends there",
    )

    def __post_init__(self) -> None:
        if self.bits not in LANE_BITS:
            raise ValueError(f"bits is {self.bits}, expected one of {LANE_BITS}")
