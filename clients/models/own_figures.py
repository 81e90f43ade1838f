"""What a received model is worth at home: its figures on the own held-out records, beside a model trained here alone.

All of it is computed at the institution and told to nobody else, so it serves private runs too, whose metrics leave
nowhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from sovfed.clients.training.feed import profile_of
from sovfed.federation.messages import TrainRequest
from sovfed.federation.metrics import SMALLER_IS_BETTER
from sovfed.federation.tasks import initial_vector, summarise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sovfed.clients.data import Dataset
    from sovfed.clients.models.passages import Apart
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.models.saved import LoadedModel
    from sovfed.federation.tasks import Task

VECTORS: Final = ("model", "scale", "begin", "control")
USUAL: Final[dict[str, Any]] = {  # where the run told no plan, as a private one
    "seed": 0, "local_epochs": 1, "batch_size": 32, "learning_rate": 0.1, "proximal_mu": 0.0,
}  # fmt: skip


class Training(Protocol):
    """What is needed of `clients.training.LocalTraining`."""

    def evaluate(self, model: Vector, scale: Sums) -> Sums: ...

    def train(self, request: TrainRequest) -> tuple[Vector, float]: ...


@dataclass(frozen=True)
class Figures:
    """Metrics by name on the own held-out records; `alone` None: no model was trained alone.

    `smaller` are the metrics that are better when smaller. `passages` is of a language model, where it was asked for.
    """

    train: int
    test: int
    headline: str
    federated: dict[str, float]
    alone: dict[str, float] | None
    smaller: frozenset[str] = SMALLER_IS_BETTER
    passages: Apart | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "smaller": sorted(self.smaller)}


def own_figures(
    model: LoadedModel,
    dataset: Dataset,
    training: Training,
    plan: Mapping[str, Any] | None,
    on_round: Callable[[int, int], None] = lambda number, rounds: None,
) -> Figures:
    """The figures of `model` on the held-out records of `dataset`, and of one trained on its training records alone.

    `training` holds the same records. `plan` are the settings of the run's requests, `rounds` among them: as many
    rounds of the same local training, one after the other; None trains none.
    """
    task = model.task
    federated = summarise(task, training.evaluate(model.vector, model.scale), model.scale)
    alone = None
    if plan is not None and len(dataset.train):
        private = model.facts.run.privacy is not None
        scale = task.transform.public_scale if private else own_scale(task, dataset)
        vector = train_alone(task, training, plan, scale, on_round)
        alone = summarise(task, training.evaluate(vector, scale), scale)
    return Figures(len(dataset.train), len(dataset.test), task.headline, federated, alone, task.metrics.smaller)


def own_scale(task: Task, dataset: Dataset) -> Sums:
    """The transform's scale by the own training records."""
    return task.transform.scale(profile_of(task, dataset, dataset.train))


def train_alone(
    task: Task, training: Training, plan: Mapping[str, Any], scale: Sums, on_round: Callable[[int, int], None]
) -> Vector:
    """The vector [d] after `plan["rounds"]` rounds of local training, each from where the last one ended."""
    rounds, vector = int(plan.get("rounds", 1)), initial_vector(task, int(plan.get("seed", 0)))
    for number in range(1, rounds + 1):
        update, _ = training.train(_request(task, plan, number, vector, scale))
        vector = vector + update
        on_round(number, rounds)
    return vector


def _request(task: Task, plan: Mapping[str, Any], number: int, vector: Vector, scale: Sums) -> TrainRequest:
    """The run's own request, as far as the plan has its settings, with the model as it stands here."""
    fields = {field.name for field in dataclasses.fields(TrainRequest)} - {*VECTORS, "run", "round", "task", "keep"}
    settings = {name: value for name, value in {**USUAL, **plan}.items() if name in fields}
    settings["algorithm"] = "sgd"  # what an algorithm adds for the federation has no sense alone
    return TrainRequest(run="alone", round=number, task=task.name, model=vector, scale=scale, **settings)
