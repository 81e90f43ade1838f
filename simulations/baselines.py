"""What a federated model is compared with: one model on all records pooled, and each institution's own model.

Both are trained by the institutions' own engine (`clients/training/local.py`): for as many epochs as the federation
ran, at the task's rate, and half as many again in which it falls to 0. Without that, the last steps' noise is a part of
the model: the mean over institutions averages it away, a single model keeps it, and pooled looks worse than federated.
Only a simulation or a demo can do this: it reads every institution's records in one process.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Dataset, Records, load_records
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import Sums, TrainRequest, Vector
from sovfed.federation.metrics.intervals import Interval, intervals
from sovfed.federation.tasks import Task, initial_vector, summarise
from sovfed.federation.tasks.registry import configured_task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sovfed.clients.data import Indices
    from sovfed.federation.config import Config, DataConfig
    from sovfed.federation.tasks.columns import Table

COOLING: Final = 0.5  # of a baseline's training is added, in which its rate falls to 0
SHOWN: Final = 40  # institutions that are told one by one
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """A flat model (shape [d]) and the feature scale (shape [2f]) it was trained with."""

    model: Vector
    scale: Sums


@dataclass(frozen=True, repr=False)
class Comparison:
    """The headline metric on held-out records; None where it is undefined, as an AUC is with one class.

    `pooled`, `federated` and `alone_mean` are on all institutions' held-out records together; `alone_mean` is the mean
    over institutions' own models. A row is one institution's own held-out records: `institution` (its name), `train`,
    `test` (counts), `pooled`, `alone`, `federated`, and `alone_union`, its own model on everybody's. `interval`,
    here and in a row, is the 95 % interval of `federated`, where the metric has one.
    """

    metric: str
    pooled: float
    alone_mean: float
    federated: float
    rows: list[dict[str, Any]]
    interval: Interval | None = None

    def __repr__(self) -> str:
        lines = [
            f"{row['institution']}: {_figures(row['pooled'], row['alone'], row['federated'])}" for row in self.rows
        ]
        every = f"all held-out records: {_figures(self.pooled, self.alone_mean, self.federated)}"
        return f"<{self.metric} of {len(self.rows)} institutions\n  " + "\n  ".join([*lines[:SHOWN], every]) + ">"


def _figures(pooled: float | None, alone: float | None, federated: float | None) -> str:
    figures = {"pooled": pooled, "alone": alone, "federated": federated}
    return "  ".join(f"{name} {'–' if value is None else format(value, '.3f')}" for name, value in figures.items())


def compare_sites(
    config: Config, data: Sequence[DataConfig], model: Vector, scale: Sums, names: Sequence[str] | None = None
) -> Comparison:
    """As `compare`, over the records of the institutions `data`."""
    task = configured_task(config.task)
    parts = [load_records(task, source) for source in data]
    return compare(config, parts, [source.site for source in data], model, scale, names)


def compare(
    config: Config, parts: Sequence[Dataset], sites: Sequence[str], model: Vector, scale: Sums,
    names: Sequence[str] | None = None,
) -> Comparison:  # fmt: skip
    """Train the baselines for `config` on the institutions' records, and hold the federated model against them.

    Of `sites` the order of records in training follows; `names`, unless left out, stand in the rows.
    """
    task, config = configured_task(config.task), _without_privacy(config)
    union = merge(parts)
    models = {"pooled": pooled(config, union), "federated": Trained(model, scale)}
    own = [alone(config, records, site) for records, site in zip(parts, sites, strict=True)]
    rows: list[dict[str, Any]] = [
        {
            "institution": name,
            "train": len(records.train),
            "test": len(records.test),
            **{name: score(task, trained, records) for name, trained in models.items()},
            "alone": score(task, own_model, records),
            "alone_union": score(task, own_model, union),
            "interval": _interval(task, models["federated"], records),
        }
        for name, records, own_model in zip(names or sites, parts, own, strict=True)
    ]
    overall = {name: _defined(task, score(task, trained, union)) for name, trained in models.items()}
    alone_mean = float(np.mean([_defined(task, row["alone_union"]) for row in rows]))
    within = _interval(task, models["federated"], union)
    return Comparison(task.headline, overall["pooled"], alone_mean, overall["federated"], rows, within)


def _without_privacy(config: Config) -> Config:
    """What the baselines are trained with. A private round is one step on a few persons, at a rate of its own: there
    they keep the task's settings.
    """
    if not config.privacy.private:
        return config
    from sovfed.federation.compose import compose

    usual = compose([f"task={config.task.file or config.task.name}"]).config
    return dataclasses.replace(config, rounds=usual.rounds, task=usual.task)


def merge(parts: Sequence[Dataset]) -> Records:
    """All institutions' records as one, nobody's training record becoming a held-out one."""
    starts = np.cumsum([0, *(len(dataset.persons) for dataset in parts)])[:-1]
    people = np.cumsum([0, *(int(dataset.persons.max()) + 1 for dataset in parts)])[:-1]
    tables = [columns_of(dataset) for dataset in parts]
    return Records(
        columns={name: np.concatenate([table[name] for table in tables]) for name in tables[0]},
        persons=np.concatenate([dataset.persons + first for dataset, first in zip(parts, people, strict=True)]),
        train=np.concatenate([dataset.train + start for dataset, start in zip(parts, starts, strict=True)]),
        test=np.concatenate([dataset.test + start for dataset, start in zip(parts, starts, strict=True)]),
        several_records=any(dataset.several_records for dataset in parts),
        not_private=next((dataset.not_private for dataset in parts if dataset.not_private), ""),
    )


def columns_of(records: Dataset) -> Table:
    """All of a dataset's arrays."""
    return records.columns if isinstance(records, Records) else records.take(np.arange(len(records.persons)))


def labels_of(task: Task, records: Dataset) -> Indices:
    """The one target of each record. Raises ConfigError if there are several."""
    if len(task.schema.targets) != 1:
        raise ConfigError(f"task '{task.name}' has {len(task.schema.targets)} targets, expected one")
    labels: Indices = columns_of(records)[task.schema.targets[0].name]
    return labels


def pooled(config: Config, union: Dataset) -> Trained:
    """One model on all training records, as if the law let them be put together."""
    return _train(config, union, "pooled")


def alone(config: Config, records: Dataset, site: str) -> Trained:
    """An institution's model on its own training records, scaled with its own mean and standard deviation.

    Or, where the task says so, with the declared bounds."""
    return _train(config, records, site)


def _train(config: Config, records: Dataset, site: str) -> Trained:
    task = configured_task(config.task)
    engine = LocalTraining(task, records, site=site, device=config.client.device, precision=config.client.precision)
    scale = task.transform.scale(engine.profile())
    model = initial_vector(task, config.seed)
    for number, stage in enumerate(_stages(config), start=1):
        request = TrainRequest(
            run="baseline",
            round=number,
            task=task.name,
            seed=config.seed,
            proximal_mu=0.0,
            model=model,
            scale=scale,
            **stage,
        )
        update, _ = engine.train(request)
        model = model + update
    return Trained(model, scale)


def _stages(config: Config) -> list[dict[str, Any]]:
    """The task's own local training without an exchange: as long as the run, then half as long, the rate falling to 0.

    The run's schedule is not followed: a reference is fitted to the end whatever it is.
    """
    plan = dataclasses.asdict(config.task.plan())
    settings = {name: plan[name] for name in plan if name not in ("final_rate", "proximal_mu")}

    def stage(share: float, rate_end: float) -> dict[str, Any]:
        lengths = {name: math.ceil(share * config.rounds * plan[name]) for name in ("local_epochs", "local_steps")}
        return {**settings, **lengths, "rate_end": rate_end}

    return [stage(1.0, 1.0), stage(COOLING, 0.0)]


def score(task: Task, trained: Trained, records: Dataset) -> float | None:
    """The task's headline metric on the held-out records, exact (a classifier's by scikit-learn); None: undefined."""
    engine = LocalTraining(task, records, site="", device="cpu")
    if task.headline not in ("auc", "accuracy"):
        sums = engine.evaluate(trained.model, trained.scale)
        return summarise(task, sums, trained.scale).get(task.headline)
    logits = engine.logits(trained.model, trained.scale, records.test)
    return exact(task.headline, logits, labels_of(task, records)[records.test])


def _interval(task: Task, trained: Trained, records: Dataset) -> Interval | None:
    """The 95 % interval of the headline metric on the held-out records, where it has one."""
    sums = LocalTraining(task, records, site="", device="cpu").evaluate(trained.model, trained.scale)
    return intervals(task.metrics, sums, task.transform.unit(trained.scale)).get(task.headline)


def exact(metric: str, logits: Logits, labels: Indices) -> float | None:
    """`metric` ("auc" or "accuracy") of logits [n, outputs]; the AUC of several classes is the one-vs-rest mean."""
    from sklearn.metrics import accuracy_score, roc_auc_score

    binary = logits.shape[1] == 1
    if metric == "accuracy":
        return float(accuracy_score(labels, logits[:, 0] > 0 if binary else logits.argmax(axis=1)))
    if metric != "auc":
        raise ConfigError(f"metric '{metric}' has no exact form here")
    if binary:
        return float(roc_auc_score(labels, logits[:, 0])) if len(np.unique(labels)) == 2 else None
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probability = shifted / shifted.sum(axis=1, keepdims=True)
    scorable = [label for label in np.unique(labels) if 0 < (labels == label).sum() < len(labels)]
    areas = [roc_auc_score(labels == label, probability[:, label]) for label in scorable]
    return float(np.mean(areas)) if areas else None


def _defined(task: Task, value: float | None) -> float:
    if value is None:
        raise ConfigError(f"{task.headline} is undefined on all held-out records of task '{task.name}' together")
    return value
