"""A linear layer that goes on from a checkpoint; the checkpoint is safetensors, since a pickled one may run code."""

from __future__ import annotations

from pathlib import Path

import torch
from conversions import made_up
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

EPOCHS = 10
CHECKPOINT = Path(__file__).with_name("checkpoint.safetensors")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.linear(features)
        return result


def from_checkpoint() -> Net:
    model = Net()
    model.load_state_dict(load_file(CHECKPOINT))
    return model


def load(part: int = 0, parts: int = 1) -> tuple[made_up.Part, made_up.Part]:
    return made_up.cut(made_up.measurements(4, 2, seed=7), part, parts)


def train(model: Net, data: made_up.Part, epochs: int) -> None:
    features, labels = data
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(epochs):
        for batch in torch.randperm(len(features)).split(32):
            optimizer.zero_grad()
            cross_entropy(model(features[batch]), labels[batch]).backward()
            optimizer.step()


def make_checkpoint() -> None:
    """What was trained elsewhere, before: on four batches, so that something is left to learn."""
    torch.manual_seed(0)
    model = Net()
    train(model, tuple(part[:128] for part in load()[0]), 1)  # type: ignore[arg-type]
    save_file(model.state_dict(), CHECKPOINT)


def main() -> float:
    torch.manual_seed(0)
    data, test = load()
    model = from_checkpoint()
    train(model, data, EPOCHS)
    return made_up.accuracy(model, test)
