"""Secure aggregation is not privacy: a malicious model reads whole records out of a sum ('Robbing the Fed', 2021).

The agency sends a digits model whose hidden units all measure the brightness of an image, each with a threshold of its
own. The gradients of neighbouring units differ by the images between two thresholds: where that is one image, it is
there in full. Source: Fowl, Geiping, Czaja, Goldblum, Goldstein, arXiv:2110.13057. The sum is opened by the shipped
secure aggregation, over institutions that the agency sees nothing of.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from sovfed.clients.data import load_records
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.service import TrainerService
from sovfed.clients.training.feed import Feed
from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.messages import Vector
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.local import Authority
from sovfed.federation.secagg.terms import Terms
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.tasks.trees import leaves
from sovfed.server.rounds.loop import Rounds
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.baselines import merge
from sovfed.simulations.grid import InMemoryGrid

INSTITUTIONS: Final = 4
IMAGES: Final = 6  # in each institution's training part
SAME: Final = 0.999  # cosine from which an image counts as recovered
TASK: Final = "digits"


@dataclass(frozen=True)
class ImprintAudit:
    """How many of `records` images the agency read out of one sum; `epsilon` is of that one round, None without DP."""

    mechanism: str
    epsilon: float | None
    records: int
    recovered: int


def audit_imprint(mechanism: str = "none") -> ImprintAudit:
    """Attack one round of a run with `privacy=mechanism`: 'none' or 'distributed' (z = 1, everybody sampled)."""
    config = compose(
        [
            f"task={TASK}", "rounds=1", "task.local_epochs=1", "task.batch_size=100000", "task.learning_rate=1.0",
            f"server.min_cohort={INSTITUTIONS}", f"privacy={mechanism}", "privacy.sampling_rate=1",
            *(["privacy.noise_multiplier=1.0", "privacy.grid_bits=16"] if mechanism != "none" else []),
        ]
    ).config  # fmt: skip
    task, authority = get_task(TASK), Authority()
    data = [DataConfig(source=TASK, site=str(i), sites=INSTITUTIONS) for i in range(INSTITUTIONS)]
    datasets = [merge([load_records(task, source)]) for source in data]
    datasets = [dataclasses.replace(records, train=records.train[:IMAGES]) for records in datasets]
    apps = {}
    for node, records in enumerate(datasets, start=1):
        identity, store = authority.institution(f"hospital-{node}"), MemoryStore()
        masking = Masking(lambda i=identity: i, lambda s=store: s, Terms(min_cohort=3, colluders=0))  # type: ignore[misc]
        source = RecordSource(lambda _, records=records: records, str(node))  # type: ignore[misc]
        trainer = TrainerService(source, Runtime(), masking=masking)
        apps[node] = make_client_app(trainer)
    grid = InMemoryGrid(apps)
    aggregation = SecureAggregation(
        grid, authority.server("agency"), config.secagg, run="1", min_cohort=INSTITUTIONS, deadline_s=60.0,
        max_size=task.parameters, config_digest=bytes(32),
    )  # fmt: skip
    rounds = Rounds(config, "1", grid, make_optimizer(config.strategy), aggregation)
    rounds.scale = task.transform.public_scale
    if mechanism != "none":
        rounds.plan = PrivacyPlan.make(config, "imprint", task.parameters)
    union = merge(datasets)
    inputs, _ = Feed(task, union, rounds.scale, torch.device("cpu")).take(torch.from_numpy(union.train))
    images = leaves(inputs)[0].numpy()
    malicious = imprint_model(np.quantile(images.mean(axis=1), np.linspace(0.02, 0.98, 32)))
    rounds.model = malicious
    rounds.train(1)
    recovered = recover(rounds.model.astype(np.float64) - malicious, images)
    return ImprintAudit(mechanism, rounds.plan.epsilon if rounds.plan else None, len(images), recovered)


def imprint_model(thresholds: np.ndarray) -> Vector:
    """Digits' perceptron with 32 units that measure brightness (the mean pixel), one for each threshold, ascending."""
    hidden, width = 32, 64
    task = get_task(TASK)
    if thresholds.shape != (hidden,):
        raise ValueError("one threshold for each hidden unit of the digits model")
    module = task.model()
    first, last = module[0], module[2]  # type: ignore[index]
    with torch.no_grad():
        first.weight.fill_(1 / width)
        first.bias.copy_(-torch.from_numpy(thresholds))
        last.weight.copy_(torch.linspace(-0.05, 0.05, 10)[:, None].expand(10, hidden))  # alike for all units
        last.bias.zero_()
    return task.layout.vector(module)


def recover(moved: np.ndarray, images: np.ndarray) -> int:
    """How many of `images` [n, 64] stand in the differences of neighbouring units' gradients."""
    weights, biases = moved[: 32 * 64].reshape(32, 64), moved[32 * 64 : 32 * 65]
    steps = np.vstack([weights[:-1] - weights[1:], weights[-1:]])
    scale = np.append(biases[:-1] - biases[1:], biases[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        guesses = np.nan_to_num(steps / scale[:, None], posinf=0.0, neginf=0.0)
    guesses /= np.maximum(np.linalg.norm(guesses, axis=1, keepdims=True), 1e-30)
    normalised = images / np.linalg.norm(images, axis=1, keepdims=True)
    return int(((guesses @ normalised.T) > SAME).any(axis=0).sum())
