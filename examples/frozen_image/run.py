"""Fine-tuning: a network that knows the digits 0 to 4 stays frozen, and a head for 5 to 9 is trained by a federation.

python examples/frozen_image/run.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sovfed
from sovfed.task import Task, classifier

PRIVATE = {
    "privacy.population": 600, "privacy.epsilon": 8, "privacy.delta": 1e-4, "privacy.colluders": 0,
    "privacy.sampling_rate": 0.5, "server.min_cohort": 3, "task.learning_rate": 2.0,
}  # fmt: skip


def base() -> nn.Sequential:
    """Images [n, 1, 8, 8] → 32 features."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 32), nn.Tanh(),
    )  # fmt: skip


def pretrain(path: Path, images: Tensor, labels: Tensor) -> None:
    """What somebody published: a base trained on other images, as a file that both sides hold."""
    torch.manual_seed(0)
    model = nn.Sequential(base(), nn.Linear(32, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(15):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    save_file(model[0].state_dict(), path)


def task_of(path: Path) -> Task:
    """The task whose model is the base in `path`, frozen, and a new head: only the head travels."""

    def build() -> nn.Module:
        frozen = base().requires_grad_(False)
        frozen.load_state_dict(load_file(path))
        return nn.Sequential(frozen, nn.Linear(32, 5))

    return classifier("digits_head", build, (1, 8, 8), classes=["5", "6", "7", "8", "9"], one_row_a_person=True)


def run(quick: bool = False) -> dict[str, float]:
    """Accuracy on held-out images: scikit-learn's head on all of them, federated, and with privacy."""
    digits = load_digits()
    images = torch.from_numpy(digits.images[:, None] / 16).float()
    labels = torch.from_numpy(digits.target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.safetensors"
        pretrain(path, images[labels < 5], labels[labels < 5])
        task = task_of(path)
        images, labels = images[labels >= 5], labels[labels >= 5] - 5
        cut = 600
        sites = [((images[i:cut:3], labels[i:cut:3]), (images[cut + i :: 3], labels[cut + i :: 3])) for i in range(3)]
        rounds = 5 if quick else 20
        plain = sovfed.simulate(
            task, sites, rounds=rounds, settings={"task.local_epochs": 8, "task.learning_rate": 0.6}
        )
        private = sovfed.simulate(task, sites, rounds=rounds, privacy="distributed", settings=PRIVATE)
        with torch.no_grad():
            features = plain.model[0](images).numpy()
    head = LogisticRegression(C=10, max_iter=500).fit(features[:cut], labels[:cut])
    pooled = float(np.mean(head.predict(features[cut:]) == labels[cut:].numpy()))
    return {
        "pooled": pooled,
        "federated": plain.metrics["accuracy"],
        "private": private.metrics["accuracy"],
        "values that travel": task.parameters,
        "values of the model": sum(part.numel() for part in plain.model.parameters()),
    }


if __name__ == "__main__":
    for name, value in run("--quick" in sys.argv).items():
        print(f"{name:<20} {value:.3f}" if isinstance(value, float) else f"{name:<20} {value}")
