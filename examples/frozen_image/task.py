"""A head for the digits 5 to 9 on a frozen base: what each institution installs, with the base's file."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from sovfed.task import Task, classifier

BASE = Path(__file__).with_name("base.safetensors")  # `make_base.py` writes it
FEATURES = 32


def base() -> nn.Sequential:
    """Images [n, 1, 8, 8] → 32 features."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, FEATURES), nn.Tanh(),
    )  # fmt: skip


def task_of(path: Path) -> Task:
    """The task whose model is the base in `path`, frozen, and a new head: only the head travels."""

    def build() -> nn.Module:
        frozen = base().requires_grad_(False)
        frozen.load_state_dict(load_file(path))
        return nn.Sequential(frozen, nn.Linear(FEATURES, 5))

    return classifier("digits_head", build, (1, 8, 8), classes=["5", "6", "7", "8", "9"], one_row_a_person=True)


TASK = task_of(BASE)
