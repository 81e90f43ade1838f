"""What privacy of persons costs a model, by how many persons there are and how many values are trained.

By the plan that a run would have, so by the product's accountant: the length of a step's noise over that of the step,
if all clipped gradients pointed the same way. Real ones reach about a third of that. Above 1 a step is mostly noise;
what points the same way in every step adds up all the same, noise does not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.compose import compose
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.simulations.benchmarks.report import Column, Files, Report, publish

if TYPE_CHECKING:
    from rich.console import Console

PERSONS: Final = (1_000, 10_000, 100_000, 1_000_000)
TRAINED: Final = (4_000, 20_000, 100_000, 600_000, 1_638_400, 10_000_000)
ROUNDS, SAMPLING = 100, 0.1
COLUMNS: Final = (
    Column("persons", "persons", "{:,}".format),
    Column("delta", "δ", "{:g}".format),
    Column("noise_multiplier", "noise multiplier", "{:.2f}".format),
    *(Column(str(values), f"{values:,} trained", "{:.2g}".format) for values in TRAINED),
)


def run(*, epsilon: float, files: Files, console: Console) -> dict[str, Any]:
    """Publish the table for `epsilon` over `ROUNDS` steps, each of a tenth of the persons."""
    files.check()
    rows = [_row(persons, epsilon) for persons in PERSONS]
    settings = {"epsilon": epsilon, "steps": ROUNDS, "sampling_rate": SAMPLING}
    return publish(
        Report("Noise over signal of a private step", COLUMNS, rows, {}, conditions=settings), console, files
    )


def _row(persons: int, epsilon: float) -> dict[str, Any]:
    delta = 10.0 ** -(round(math.log10(persons)) + 1)
    config = compose([
        "privacy=distributed", f"rounds={ROUNDS}", f"privacy.epsilon={epsilon}", f"privacy.delta={delta:g}",
        f"privacy.sampling_rate={SAMPLING}", f"privacy.population={persons}",
    ]).config  # fmt: skip
    plans = {values: PrivacyPlan.make(config, "", values) for values in TRAINED}
    shares = {str(values): plan.noise_multiplier * math.sqrt(values) / plan.batch for values, plan in plans.items()}
    return {"persons": persons, "delta": delta, "noise_multiplier": plans[TRAINED[0]].noise_multiplier, **shares}
