"""pfl-research 0.6 (Granqvist et al. 2024, arXiv:2404.06430): its SimulatedBackend and FederatedAveraging.

Its best case: datasets are built once and their batches cached by pfl.
"""

# mypy: disable-error-code="import-not-found,import-untyped,misc,unused-ignore"
from __future__ import annotations

from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from sovfed.simulations.benchmarks.simulators.workload import Clock, Job, Part, Workload


class Module(torch.nn.Module):
    """The task's model with the two methods that pfl asks for."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.inner, self._work = work.model(), work

    def forward(self, features: torch.Tensor) -> Any:
        return self.inner(features)

    def loss(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self._work.loss(self(features), labels)

    @torch.no_grad()
    def metrics(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        loss, right = self._work.measure(self(features), labels)
        return {"loss": Weighted(loss, len(labels)), "accuracy": Weighted(right, len(labels))}


class EvaluateThenTrain(FederatedAveraging):  # type: ignore[misc]
    """FedAvg that, before it trains, evaluates on the institution's held-out records."""

    def train_one_user(self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any) -> Any:
        metrics = model.evaluate(user_dataset.metadata["held_out"])
        statistics, more = super().train_one_user(initial_model_state, model, user_dataset, central_context)
        return statistics, metrics | more


class Marks(TrainingProcessCallback):  # type: ignore[misc]
    """Marks the clock when an iteration has ended."""

    def __init__(self, clock: Clock, rounds: int) -> None:
        self._clock, self._rounds = clock, rounds

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self._clock.mark()
        self._clock.accuracy = next(
            float(value.overall_value) for name, value in aggregate_metrics if "accuracy" in str(name)
        )
        if central_iteration + 1 == self._rounds:
            self._clock.weigh()
        return False, Metrics()


def run(system: str, job: Job, rounds: int, clock: Clock) -> None:
    """pfl's training loop, with its own metrics before and after training off after the first round."""
    work = Workload(job)
    datasets = [_dataset(work.part(k), k) for k in range(job.institutions)]
    cohorts = iter([k for number in range(1, rounds + 1) for k in job.cohort_of(number)])
    population = FederatedDataset(lambda k: datasets[k], lambda: next(cohorts))
    module = Module(work)
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    backend = SimulatedBackend(training_data=population, val_data=population, postprocessors=[WeightByDatapoints()])
    EvaluateThenTrain().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**9,
            train_cohort_size=job.cohort,
            val_cohort_size=None,
        ),
        backend,
        model,
        NNTrainHyperParams(
            local_num_epochs=job.epochs, local_learning_rate=job.learning_rate, local_batch_size=job.batch_size
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Marks(clock, rounds)],
        send_metrics_to_platform=False,
    )


def _dataset(part: Part, number: int) -> Dataset:
    held_out = Dataset(raw_data=list(part.test))
    return Dataset(raw_data=list(part.train), user_id=str(number), metadata={"held_out": held_out})
