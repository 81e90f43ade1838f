"""Does the model's loss on a person tell whether they were trained on? The loss-threshold attack, with and without DP.

Source: Yeom, Giacomelli, Fredrikson, Jha 2018, arXiv:1709.01604. The weakest attack there is: it stands for what a
bystander can do with the released model alone, and a failure says little. The bound is what (ε, δ) grants any attack:
`federation.privacy.statement.detection_rate`.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from sovfed.clients.data import load_records
from sovfed.clients.training import LocalTraining
from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError
from sovfed.federation.privacy.statement import detection_rate
from sovfed.federation.tasks import get_task
from sovfed.simulations.baselines import merge
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import Institution, institution_names, sites

INSTITUTIONS: Final = 4
TRAINED: Final = 25  # images of each institution: so few that a model learns them by heart
FALSE_ALARMS: Final = 0.05
LEARNT: Final = 0.7  # AUC that a model without privacy must give away, or the audit shows nothing
TASK: Final = "digits"


@dataclass(frozen=True)
class MembershipAudit:
    """`auc` 0.5 is a coin toss; `found` is the share of members found at 5 % false alarms, `bound` what ε allows."""

    mechanism: str
    epsilon: float | None
    members: int
    auc: float
    found: float
    bound: float

    @property
    def contradicted(self) -> bool:
        """Whether more were found than the bound and three standard deviations of chance."""
        return self.found > self.bound + 3 * math.sqrt(self.bound * (1 - self.bound) / self.members)


def audit_membership(mechanism: str = "none", *, epsilon: float = 1.0, seed: int = 0) -> MembershipAudit:
    """Train `digits` on 100 persons with `privacy=mechanism`, and tell them from others by their loss."""
    from sklearn.metrics import roc_auc_score

    private = mechanism != "none"
    config = compose(
        [
            f"task={TASK}", f"seed={seed}", f"simulation.institutions={INSTITUTIONS}", "simulation.engine=inprocess",
            f"privacy={mechanism}", f"rounds={60 if private else 40}", f"privacy.epsilon={epsilon}",
            "privacy.delta=1e-4", "privacy.sampling_rate=0.5", f"privacy.population={INSTITUTIONS * TRAINED}",
            f"task.learning_rate={1.0 if private else 0.3}", "task.batch_size=8",
        ]
    ).config  # fmt: skip
    task, data = get_task(TASK), sites(config)
    parts = [load_records(task, one) for one in data]
    parts = [dataclasses.replace(part, train=part.train[:TRAINED]) for part in parts]
    population = [
        Institution(name, one.site, lambda _, part=part: part)  # type: ignore[misc]
        for name, one, part in zip(institution_names(data), data, parts, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        outcome = simulate_population(config, population, Path(folder))
    union = merge(parts)
    rows = np.concatenate([union.train, union.test])
    logits = LocalTraining(task, union, site="", device="cpu").logits(outcome.model, outcome.scale, rows)
    if task.loss is None:
        raise ConfigError(f"task '{TASK}' has no loss")
    score = -task.loss(torch.from_numpy(logits), torch.from_numpy(union.labels[rows])).numpy()
    member = np.arange(len(rows)) < len(union.train)
    found = float((score[member] > np.quantile(score[~member], 1 - FALSE_ALARMS)).mean())
    spent = outcome.summary["epsilon"]
    bound = 1.0 if spent is None else detection_rate(spent, config.privacy.delta, FALSE_ALARMS)
    return MembershipAudit(mechanism, spent, len(union.train), float(roc_auc_score(member, score)), found, bound)
