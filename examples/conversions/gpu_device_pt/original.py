"""A network and its data on a GPU where there is one, written straight down in one function."""

from __future__ import annotations

import torch
from conversions import made_up
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

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
    return made_up.cut(made_up.measurements(4, 2, seed=2), part, parts)


def main() -> float:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (features, labels), test = load()
    model = Net().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    features, labels = features.to(device), labels.to(device)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(features), device=device).split(16):
            optimizer.zero_grad()
            cross_entropy(model(features[batch]), labels[batch]).backward()
            optimizer.step()
    return made_up.accuracy(model.cpu(), test)
