"""A laboratory's own task, connector, local optimizer and server strategy: everything that sovfed lets a package bring.

`pip install .` on every machine of the federation, by its own operator; then

    sovfed simulate task=sepsis task.optimizer=lab_sign strategy=lab_cautious rounds=20
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sovfed.task import Connector, LocalPlan, Records, Schema, State, Task, losses, metrics, number, records, target


class Net(nn.Module):
    """Two inputs by name, a dict of outputs: as a laboratory has it."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.wave, self.out = nn.Linear(2, 8), nn.Linear(4, 8), nn.Linear(16, 1)

    def forward(self, x: Tensor, wave: Tensor) -> dict[str, Tensor]:
        both = torch.cat([self.values(x), self.wave(wave)], 1)
        return {"logits": self.out(both.relu())}


TASK = Task(
    name="sepsis",
    title="Sepsis from two values and a short wave",
    schema=Schema(
        (
            number("lactate", 0, 30, unit="mmol/l"),
            number("temperature", 30, 45, unit="°C"),
            number("wave", -5, 5, shape=(4,), scaling="none"),
            target("sepsis", "no", "yes"),
        ),
    ),
    build=Net,
    loss=losses.binary_cross_entropy,
    metrics=metrics.BinaryMetrics(),
    headline="auc",
)


def load(task: Task, config: object) -> Records:
    """Records of the laboratory `data.site`: made up here, from the site's number; a real connector reads its own."""
    generator = np.random.default_rng(int(config.site))  # type: ignore[attr-defined]
    count = 120
    values = np.stack([generator.uniform(0, 12, count), generator.uniform(35, 41, count)], 1)
    wave = generator.normal(size=(count, 4)).clip(-5, 5)
    risk = 0.5 * (values[:, 0] - 6) + (values[:, 1] - 38) + wave[:, 0] + generator.normal(0, 0.5, count)
    inputs = {".numbers": values, "wave": wave}
    return records(task, (inputs, (risk > 0).astype(np.int64)), persons=np.arange(count))


CONNECTOR = Connector(load, task="sepsis", cuts=True)


class Sign:
    """value ← value − rate · sign(gradient), for one model and for stacked ones alike."""

    plain = False

    def init(self, values: Sequence[Tensor], shapes: Sequence[tuple[int, ...]] | None = None) -> State:
        return State([tuple(value.shape) for value in values] if shapes is None else list(shapes))

    def step(
        self, values: Sequence[Tensor], gradients: Sequence[Tensor | None], state: State, rate: float | Tensor
    ) -> None:
        for value, gradient, shape in zip(values, gradients, state.shapes, strict=True):
            if gradient is not None:
                each = rate.reshape((*rate.shape, *(1 for _ in shape))) if isinstance(rate, Tensor) else rate
                value.sub_(each * gradient.sign())


def sign(plan: LocalPlan) -> Sign:
    """The optimizer `lab_sign`."""
    return Sign()


class Cautious:
    """model + half the mean update."""

    def step(self, round: int, model: np.ndarray, mean_update: np.ndarray) -> np.ndarray:
        return model + np.float32(0.5) * mean_update

    def slots(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, slots: dict[str, np.ndarray]) -> None:
        pass


def cautious(config: object, layout: object) -> Cautious:
    """The strategy `lab_cautious`."""
    return Cautious()
