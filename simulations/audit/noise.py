"""Is there as much noise in an opened sum as the accountant was told? A χ² test on sums of nobody's gradients.

A whole private run in one process (coordinator, secure aggregation, trainers) at a sampling rate at which nobody is
ever drawn: what the model moves by is noise alone, h honest shares of it and those of the feared colluders.
(`institution`, which samples nobody, trains at a rate that moves nothing.)
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sovfed.federation.compose import compose
from sovfed.federation.privacy.noise import Units
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.simulations.federation import simulate, sites

INSTITUTIONS: Final = 4
COLLUDERS: Final = 1
TASK: Final = "digits"
NOBODY: Final = 1e-6  # sampling rate
FALSE_ALARM: Final = 1e-3
POWER: Final = 0.99


@dataclass(frozen=True)
class NoiseAudit:
    """`ratio` is the measured variance ÷ the claimed; a claim is contradicted if `p_value` is below 1e-3.

    `detectable` is the ratio that would be found with 99 % probability.
    """

    mechanism: str
    claimed: float
    ratio: float
    p_value: float
    detectable: float

    @property
    def contradicted(self) -> bool:
        return self.p_value < FALSE_ALARM


def audit_noise(mechanism: str, *, noise_multiplier: float = 2.0, claimed: float | None = None) -> NoiseAudit:
    """Run two rounds with `noise_multiplier` and test them against `claimed` (default: the same).

    The honest shares' variance is the opened sum's · h/n, as all n shares are alike.
    """
    from scipy.stats import chi2

    claimed = noise_multiplier if claimed is None else claimed
    config = compose(
        [
            f"task={TASK}", f"privacy={mechanism}", f"privacy.noise_multiplier={noise_multiplier}",
            f"privacy.sampling_rate={NOBODY}", "privacy.population=1000000000", "privacy.local_steps=1", "rounds=2",
            f"simulation.institutions={INSTITUTIONS}", f"privacy.colluders={COLLUDERS}",
            f"task.learning_rate={1e-6 if mechanism == 'institution' else 1.0}",
            f"server.min_cohort={INSTITUTIONS}", "privacy.grid_bits=16", "simulation.engine=inprocess",
        ]
    ).config  # fmt: skip
    task = get_task(TASK)
    with tempfile.TemporaryDirectory() as folder:
        model = simulate(config, sites(config), Path(folder)).model
    moved = (model - initial_vector(task, config.seed)).astype(np.float64)
    units = Units(config.privacy.clip, task.parameters, config.privacy.grid_bits)
    sensitivity = np.ldexp(units.sensitivity, units.exponent)
    batch = NOBODY * config.privacy.population
    every = INSTITUTIONS / (INSTITUTIONS - COLLUDERS)  # shares in the sum, to one of those that are counted on
    divisor, shares = {
        "distributed": (batch, every),
        "silo": (batch, INSTITUTIONS),  # all of the noise from each: the mean of steps of 1 / (batch / institutions)
        "institution": (INSTITUTIONS, every),
    }[mechanism]
    expected = 2 * (claimed * sensitivity / divisor) ** 2 * shares
    statistic = float((moved**2).sum()) / expected
    detectable = chi2.ppf(FALSE_ALARM, moved.size) / chi2.ppf(POWER, moved.size)
    return NoiseAudit(mechanism, claimed, statistic / moved.size, float(chi2.cdf(statistic, moved.size)), detectable)
