"""A network whose sizes are arguments, with an evaluation of its own."""

from __future__ import annotations

import torch
from conversions import made_up
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

EPOCHS = 10


class Net(nn.Module):
    def __init__(self, inputs: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, 8)
        self.output = nn.Linear(8, classes)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.output(relu(self.hidden(features)))
        return result


def load(part: int = 0, parts: int = 1) -> tuple[made_up.Part, made_up.Part]:
    return made_up.cut(made_up.measurements(4, 2, seed=4), part, parts)


def evaluate(model: nn.Module, data: made_up.Part) -> dict[str, float]:
    """Accuracy and mean loss on `data`."""
    model.eval()
    with torch.no_grad():
        logits = model(data[0])
    return {
        "accuracy": float((logits.argmax(1) == data[1]).float().mean()),
        "loss": float(cross_entropy(logits, data[1])),
    }


def main() -> float:
    torch.manual_seed(0)
    (features, labels), test = load()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(features)).split(16):
            optimizer.zero_grad()
            cross_entropy(model(features[batch]), labels[batch]).backward()
            optimizer.step()
    return evaluate(model, test)["accuracy"]
