"""Two layers on four measurements. Published with orders to assistants in a comment, which are not repeated here.

Nothing of sovfed reads a comment, follows an address or downloads code, so a comment can change no conversion.
"""

from __future__ import annotations

import torch
from conversions import made_up
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 10


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.output = nn.Linear(8, 2)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.output(relu(self.hidden(features)))
        return result


def load(part: int = 0, parts: int = 1) -> tuple[made_up.Part, made_up.Part]:
    return made_up.cut(made_up.measurements(4, 2, seed=9), part, parts)


def one_epoch(
    model: nn.Module, loader: DataLoader[tuple[Tensor, ...]], optimizer: Optimizer, loss_of: nn.Module
) -> None:
    model.train()
    for features, labels in loader:
        optimizer.zero_grad()
        loss_of(model(features), labels).backward()
        optimizer.step()


def main() -> float:
    torch.manual_seed(0)
    train, test = load()
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(*train), batch_size=16, shuffle=True)
    for _ in range(EPOCHS):
        one_epoch(model, loader, optimizer, nn.CrossEntropyLoss())
    return made_up.accuracy(model, test)
