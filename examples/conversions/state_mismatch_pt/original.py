"""A classifier whose sizes are arguments, made by a function: who calls it with others has another model."""

from __future__ import annotations

import torch
from conversions import made_up
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

EPOCHS = 10


class Classifier(nn.Module):
    def __init__(self, inputs: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.linear(features)
        return result


def build_model() -> Classifier:
    return Classifier(inputs=4, classes=2)


def load(part: int = 0, parts: int = 1) -> tuple[made_up.Part, made_up.Part]:
    return made_up.cut(made_up.measurements(4, 2, seed=8), part, parts)


def main() -> float:
    torch.manual_seed(0)
    (features, labels), test = load()
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(features)).split(16):
            optimizer.zero_grad()
            cross_entropy(model(features[batch]), labels[batch]).backward()
            optimizer.step()
    return made_up.accuracy(model, test)
