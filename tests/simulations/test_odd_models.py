"""Modules that are unlike most: trained by either engine, or refused by the stacked one with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sovfed
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.conformance import require_works
from sovfed.task import Task, classifier, records


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x).relu())


class Tempered(Plain):
    """With a parameter of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.temperature


class Brief(Plain):
    """In bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.to(torch.bfloat16)


class Dropping(Plain):
    """With dropout as a function, which no module shows."""

    def forward(self, x: Tensor) -> Any:
        return self.last(nn.functional.dropout(self.first(x).relu(), 0.2, self.training))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.cells(x.unsqueeze(-1))[0][:, -1])


class Spectral(nn.Module):
    """With buffers that change as it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x).relu())


def run(module: type[nn.Module], **settings: Any) -> sovfed.Result:
    task: Task = classifier(f"odd-{module.__name__}", module, (4,), classes=3)
    sites = {}
    for number in range(3):
        drawn = np.random.default_rng(number)
        x = drawn.normal(size=(33, 4)).clip(-9, 9).astype(np.float32)  # a last batch of one
        sites[f"site-{number}"] = records(task, (x, x[:, :3].argmax(1)), persons=np.arange(33))
    shared = {"secagg": "none", "task.batch_size": 11, "task.learning_rate": 0.3}
    return sovfed.simulate(task, sites, rounds=2, settings={**shared, **settings})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_parameter_without_a_dimension_is_trained_by_either_engine(optimizer: str) -> None:
    one, other = (
        run(Tempered, **{"simulation.engine": engine, "task.optimizer": optimizer})
        for engine in ("inprocess", "vectorised")
    )
    np.testing.assert_allclose(one.vector, other.vector, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "reason"),
    [(Dropping, "randomness"), (Recurrent, "aten::lstm"), (Spectral, "a buffer changes"), (Brief, "than float32")],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason_and_trained_otherwise(
    module: type[nn.Module], reason: str
) -> None:
    with pytest.raises(ConfigError, match=f"vectorised cannot train this.*{reason}"):
        run(module, **{"simulation.engine": "vectorised"})
    assert np.isfinite(run(module, **{"simulation.engine": "inprocess"}).vector).all()


def test_a_model_in_bfloat16_is_judged_as_the_trainer_judges_it() -> None:
    require_works(classifier("brief", Brief, (4,), classes=3))
