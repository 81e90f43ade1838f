"""Example-level DP-SGD as in Opacus' and Flower's quick-starts: `make_private` at every institution in every round.

opacus            a hand-written loop over the institutions
flower_ray_opacus Flower's simulation, by `flower_ray.run`
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from typing import Any, Final

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from sovfed.simulations.benchmarks.simulators.workload import FOLDER, Clock, Job, Part, Workload, cached_work

CLIP, NOISE, RATE, STEPS = 1.0, 1.0, 0.5, 2
OVERRIDES: Final = (
    "privacy=silo", f"privacy.clip={CLIP}", f"privacy.noise_multiplier={NOISE}", f"privacy.sampling_rate={RATE}",
    f"privacy.local_steps={STEPS}", "secagg=full",
)  # fmt: skip
client_app = ClientApp()


def train_privately(work: Workload, model: torch.nn.Module, part: Part) -> None:
    """Move `model` by `STEPS` private steps at `RATE`, which Opacus takes to be 1 / (batches of an epoch)."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    count = len(part.train[1])
    loader: Any = DataLoader(TensorDataset(*part.train), batch_size=math.ceil(count * RATE))
    optimizer = torch.optim.SGD(model.parameters(), lr=work.job.learning_rate)
    private, stepper, batches = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=NOISE, max_grad_norm=CLIP
    )
    for features, labels in batches:
        stepper.zero_grad()
        work.loss(private(features), labels).backward()  # type: ignore[no-untyped-call]
        stepper.step()
    private.remove_hooks()


def run(system: str, job: Job, rounds: int, clock: Clock) -> None:
    """FedAvg over the institutions' private updates, by hand."""
    be_quiet()
    work = Workload(job)
    current = torch.nn.utils.parameters_to_vector(work.model().parameters()).detach().clone()
    for number in range(1, rounds + 1):
        total = torch.zeros_like(current, dtype=torch.float64)
        for institution in job.cohort_of(number):
            model = work.model()
            torch.nn.utils.vector_to_parameters(current.clone(), model.parameters())
            train_privately(work, model, work.part(institution))
            total += torch.nn.utils.parameters_to_vector(model.parameters()).detach().double()
        current = (total / job.cohort).float()
        clock.mark()
    clock.weigh()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """The reply has the whole model, as Flower's FedAvg wants it."""
    be_quiet()
    work = cached_work(os.environ[FOLDER])[0]
    site_records = work.part(int(context.node_config["partition-id"]))
    model = work.model()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    train_privately(work, model, site_records)
    metrics: dict[str, Any] = {"num-examples": 1, "right": 0, "tested": 1}
    content: dict[str, Any] = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


def be_quiet() -> None:
    """Opacus warns of its random numbers, and torch of Opacus' hooks, in every step."""
    warnings.filterwarnings("ignore")
    logging.getLogger("opacus").setLevel(logging.ERROR)
