"""One linear layer behind `DataParallel`, which cuts each batch over all GPUs that there are."""

from __future__ import annotations

import torch
from conversions import made_up
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

EPOCHS = 10


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.linear(features)
        return result


def load(part: int = 0, parts: int = 1) -> tuple[made_up.Part, made_up.Part]:
    return made_up.cut(made_up.measurements(4, 2, seed=3), part, parts)


def main() -> float:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (features, labels), (test_features, test_labels) = load()
    model = nn.DataParallel(Net()).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(features)).split(16):
            optimizer.zero_grad()
            cross_entropy(model(features[batch].to(device)), labels[batch].to(device)).backward()
            optimizer.step()
    return made_up.accuracy(model, (test_features.to(device), test_labels.to(device)))
