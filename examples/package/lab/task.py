"""Sepsis from two values and a short wave, by a model of the laboratory's own."""

import torch
from torch import Tensor, nn

from lab.metric import Alarms
from sovfed.task import Schema, Task, losses, number, target


class Net(nn.Module):
    """Two inputs by name, a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.wave, self.out = nn.Linear(2, 8), nn.Linear(4, 8), nn.Linear(16, 1)

    def forward(self, x: Tensor, wave: Tensor) -> dict[str, Tensor]:
        both = torch.cat([self.values(x), self.wave(wave)], 1)
        return {"logits": self.out(both.relu())}


COLUMNS = (
    number("lactate", 0, 30, unit="mmol/l"),
    number("temperature", 30, 45, unit="°C"),
    number("wave", -5, 5, shape=(4,), scaling="none"),
    target("sepsis", "no", "yes"),
)
TASK = Task(
    name="sepsis", title="Sepsis from two values and a short wave", schema=Schema(COLUMNS), build=Net,
    loss=losses.binary_cross_entropy, metrics=Alarms(), headline="accuracy",
)  # fmt: skip
