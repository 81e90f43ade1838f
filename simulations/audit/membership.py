"""Does the released model tell who was trained on? The likelihood-ratio attack, with and without privacy.

    LiRA       Carlini, Chien, Nasr, Song, Terzis, Tramèr 2022, arXiv:2112.03570, Algorithm 1 (online)
    threshold  Yeom, Giacomelli, Fredrikson, Jha 2018, arXiv:1709.01604: a small loss means a member. The baseline

Many models are trained, each on a random half of a pool of persons; each is attacked in turn, with all others as its
shadows. A quarter of the pool has a wrong label: nothing but having seen such a person makes a model agree with it,
which is as bad for a person as it gets (Aerni, Zhang, Tramèr 2024, arXiv:2404.17399). Private models are trained by the
shipped `PrivateTraining`, as a cohort's noise leaves them to whoever knows the feared colluders' shares; the attacker
sees the last model alone. The bound is what (ε, δ) grants any attack: `federation.privacy.statement.detection_rate`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Records, load_records
from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.private import PrivateTraining
from sovfed.federation.compose import compose
from sovfed.federation.messages import TrainRequest
from sovfed.federation.privacy.statement import detection_rate
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.simulations.baselines import labels_of, merge
from sovfed.simulations.federation import sites
from sovfed.simulations.population import Institution
from sovfed.simulations.vectorised import Cohort, StackedTraining

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.config import Config
    from sovfed.federation.messages import Vector

TASK: Final = "digits"
INSTITUTIONS: Final = 4
POOL: Final = 200  # persons, of whom each model is trained on about half: so few that it learns them by heart
WRONG: Final = 50  # of them with a wrong label
FALSE_ALARMS: Final = 0.05
SURE: Final = 3.0  # standard deviations over the models, beyond which a bound is contradicted
LEARNT: Final = 0.7  # AUC that models without privacy must give away, or the audit shows nothing
STEPS: Final = 60  # of a private model
EPOCHS: Final = 150  # of another
DELTA: Final = 1e-4
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """What an attack found: `auc` 0.5 is a coin toss; `share` of members at 5 % false alarms, `error` its deviation."""

    auc: float
    share: float
    error: float


@dataclass(frozen=True)
class MembershipAudit:
    """Attacks on `models` models, on the persons as they are or on the mislabelled; `bound` is what ε allows."""

    privacy: str
    epsilon: float | None
    models: int
    persons: str
    lira: Found
    threshold: Found
    bound: float

    @property
    def contradicted(self) -> bool:
        """Whether an attack found more than the bound, beyond chance."""
        return any(attack.share - SURE * attack.error > self.bound for attack in (self.lira, self.threshold))


def audit_membership(
    epsilon: float | None = None, *, models: int = 64, seed: int = 0, claimed: float | None = None
) -> list[MembershipAudit]:
    """Attack models trained with (`epsilon`, 1e-4)-DP, or without privacy; of persons as they are, and mislabelled.

    `claimed` is the ε to hold against what is found (default: `epsilon`).
    """
    config, pool = _configure(epsilon, seed), _pool(seed)
    inside = _halves(models, seed)
    vectors = list(_private(config, pool, inside) if epsilon else _plain(config, pool, inside))
    margins, losses = _scores(pool, vectors)
    claimed = epsilon if claimed is None else claimed
    bound = 1.0 if claimed is None else detection_rate(claimed, DELTA, FALSE_ALARMS)
    ratios = likelihood_ratios(margins, inside)
    wrong = np.arange(POOL) < WRONG
    return [
        MembershipAudit(
            f"ε = {epsilon:g}" if epsilon else "none", claimed, models, persons,
            _found(ratios[:, chosen], inside[:, chosen]), _found(-losses[:, chosen], inside[:, chosen]), bound,
        )
        for persons, chosen in (("as they are", ~wrong), ("mislabelled", wrong))
    ]  # fmt: skip


def likelihood_ratios(margins: Floats, inside: Flags) -> Floats:
    """log p(margin | member) − log p(margin | not), by Gaussians fitted on all other models: shape [models, persons].

    `margins` [models, persons] are log p(label) − log(1 − p(label)); `inside` says who was trained on. Means are each
    person's own, variances are shared, as Carlini et al. advise for few models.
    """
    scores = np.empty_like(margins)
    for target in range(len(margins)):
        shadows = np.arange(len(margins)) != target
        score = np.zeros(margins.shape[1])
        for group, sign in ((inside, 1), (~inside, -1)):
            shadow_margins = np.where(group[shadows], margins[shadows], np.nan)
            mean, variance = np.nanmean(shadow_margins, axis=0), np.nanvar(shadow_margins, axis=0).mean() + 1e-6
            score += sign * (-((margins[target] - mean) ** 2) / (2 * variance) - np.log(variance) / 2)
        scores[target] = score
    return scores


def _found(scores: Floats, inside: Flags) -> Found:
    from sklearn.metrics import roc_auc_score

    cut = np.quantile(scores[~inside], 1 - FALSE_ALARMS)
    shares = [float((model_scores[member] > cut).mean()) for model_scores, member in zip(scores, inside, strict=True)]
    return Found(
        float(roc_auc_score(inside.ravel(), scores.ravel())), float(np.mean(shares)),
        float(np.std(shares, ddof=1) / math.sqrt(len(shares))),
    )  # fmt: skip


def _configure(epsilon: float | None, seed: int) -> Config:
    return compose(
        [
            f"task={TASK}", f"seed={seed}", f"simulation.institutions={INSTITUTIONS}", f"rounds={STEPS}",
            f"privacy={'silo' if epsilon else 'none'}", f"privacy.epsilon={epsilon or 1.0}", f"privacy.delta={DELTA}",
            "privacy.local_steps=1", "privacy.spare_steps=0", "privacy.sampling_rate=0.5", "privacy.clip=0.5",
            f"privacy.population={POOL // 2}", f"task.learning_rate={2.0 if epsilon else 0.3}", "task.batch_size=16",
            *(["secagg=none"] if not epsilon else []),
        ]
    ).config  # fmt: skip


@cache
def _pool(seed: int) -> Records:
    """The persons of the pool, rows 0 to `POOL` − 1, the first `WRONG` with a wrong label; and nobody held out."""
    generator, task = np.random.default_rng(seed), get_task(TASK)
    union = merge([load_records(task, source) for source in sites(_configure(None, seed))])
    rows = generator.permutation(union.train)[:POOL]
    labels, classes = labels_of(task, union)[rows], len(task.schema.classes)
    labels[:WRONG] = (labels[:WRONG] + generator.integers(1, classes, WRONG)) % classes
    everybody = np.arange(POOL)
    columns = {**union.take(rows), task.schema.targets[0].name: labels}
    return Records(columns, everybody, everybody, everybody[:0], several_records=False)


def _halves(models: int, seed: int) -> Flags:
    """Who is in which model, shape [models, POOL]: each person in half of them, as Carlini et al. have it."""
    generator = np.random.default_rng(seed + 1)
    column = np.arange(models) % 2 == 0
    return np.stack([generator.permutation(column) for _ in range(POOL)], axis=1)


def _plain(config: Config, pool: Records, inside: Flags) -> Iterator[Vector]:
    """Models by ordinary local training, all at once."""
    task, start = get_task(TASK), initial_vector(get_task(TASK), config.seed)
    halves = [dataclasses.replace(pool, train=np.flatnonzero(members)) for members in inside]
    shadows = [Institution(str(i), str(i), lambda _, half=half: half) for i, half in enumerate(halves)]  # type: ignore[misc]
    request = TrainRequest(
        run="shadows", round=1, task=TASK, seed=config.seed, local_epochs=EPOCHS, batch_size=config.task.batch_size,
        learning_rate=config.task.learning_rate, proximal_mu=0.0, model=start,
        scale=task.transform.public_scale,
    )  # fmt: skip
    vectors: dict[int, Vector] = {}
    for trained in StackedTraining(task, config).train(request, Cohort.of(task, shadows, "cpu")):
        vectors |= dict(zip(trained.places, start + trained.updates.numpy(), strict=True))
    return (vectors[index] for index in range(len(halves)))


def _private(config: Config, pool: Records, inside: Flags) -> Iterator[Vector]:
    """Models by the shipped private steps, one after the other."""
    task = get_task(TASK)
    config = dataclasses.replace(config, rounds=1, privacy=dataclasses.replace(config.privacy, local_steps=STEPS))
    start, plan = initial_vector(task, config.seed), PrivacyPlan.make(config, "shadows", task.parameters)
    request = dataclasses.replace(
        plan.request("shadows", 1, start), batch=config.privacy.sampling_rate * config.privacy.population
    )
    for members in inside:
        half = dataclasses.replace(pool, train=np.flatnonzero(members))
        yield start + PrivateTraining(task, half, site="", device="cpu", ledger=None).update(request, room=0).vector


def _scores(pool: Records, vectors: list[Vector]) -> tuple[Floats, Floats]:
    """Margins and losses of the pool under each model, shape [models, POOL]."""
    task, everybody = get_task(TASK), np.arange(POOL)
    engine, labels = LocalTraining(task, pool, site="", device="cpu"), labels_of(task, pool)
    logits = np.stack([engine.logits(vector, task.transform.public_scale, everybody) for vector in vectors])
    own = logits.astype(np.float64)[:, everybody, labels]
    other_logits = logits.astype(np.float64)
    other_logits[:, everybody, labels] = -np.inf
    margins = own - np.logaddexp.reduce(other_logits, axis=2)
    return margins, np.logaddexp(0.0, -margins)
