"""A model as one flat vector: gradients are torch's, and modules of every kind train as they would by themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from tests.records import records_of
from torch import Tensor, nn

from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.model import FlatModel, gradients
from sovfed.federation.messages import TrainRequest
from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.tasks import Task, initial_vector
from sovfed.federation.tasks.columns import Column, Schema, number, target
from sovfed.federation.tasks.losses import cross_entropy
from sovfed.federation.tasks.registry import get_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.federation.messages import Vector

NUMBERS = Schema((*(number(f"c{place}", -1, 1) for place in range(6)), target("y", "a", "b", "c")))
IMAGES = Schema((Column("scan", "number", low=-1.0, high=1.0, shape=(2, 8, 8)), target("y", "a", "b", "c")))
CPU = torch.device("cpu")


@pytest.mark.parametrize("task", ["breast_cancer", "digits", "digits_cnn", "synthetic_text"])
def test_gradients_are_those_of_torch(task: str) -> None:
    found = get_task(task)
    assert found.loss is not None
    model = FlatModel(found, torch.device("cpu"))
    torch.manual_seed(1)
    rows, _ = found.made_up(6)
    weights = torch.rand(6)

    def losses() -> torch.Tensor:
        assert found.loss is not None
        return found.loss(model.module(rows), torch.zeros(6, dtype=torch.long))

    unused = torch.nn.Parameter(torch.ones(2))
    parameters = (*model.parameters, unused)
    ours = gradients(losses(), weights, parameters)
    torchs: list[torch.Tensor | None] = list(torch.autograd.grad(losses(), parameters, weights, allow_unused=True))
    assert ours[-1] is None and torchs[-1] is None
    for mine, other in zip(ours[:-1], torchs[:-1], strict=True):
        assert mine is not None and other is not None and torch.equal(mine, other)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in ours)
    assert all(parameter.grad is None for parameter in parameters)


def task_of(build: Callable[[], nn.Module], schema: Schema = NUMBERS) -> Task:
    return Task(
        name="mine", title="t", schema=schema, metrics=ClassMetrics(3), headline="auc", build=build, loss=cross_entropy
    )


def data(schema: Schema) -> tuple[Tensor, Tensor]:
    """40 records whose values are u already: the declared bounds are −1 and 1."""
    generator = torch.Generator().manual_seed(3)
    shape = schema.inputs[0].shape or (6,)
    inputs = torch.rand(40, *shape, generator=generator) * 2 - 1
    return inputs, torch.randint(0, 3, (40,), generator=generator)


def trained(task: Task, *, epochs: int = 3, rate: float = 0.5, model: Vector | None = None) -> tuple[Vector, Vector]:
    """The model before and after full steps over 32 of the records."""
    inputs, labels = data(task.schema)
    records = records_of(task.schema, inputs.numpy(), labels.numpy(), np.arange(32), np.arange(32, 40))
    start = initial_vector(task, 0) if model is None else model
    request = TrainRequest(
        run="r", round=1, task="mine", seed=1, local_epochs=epochs, batch_size=64, learning_rate=rate,
        proximal_mu=0.0, model=start, scale=task.transform.public_scale, digest=task.digest,
    )  # fmt: skip
    update, _ = LocalTraining(task, records, site="0", device="cpu").train(request)
    return start, start + update


def by_torch(task: Task, *, epochs: int = 3, rate: float = 0.5) -> nn.Module:
    """The same by torch.optim on the module as it was built."""
    assert task.build is not None and task.loss is not None
    inputs, labels = data(task.schema)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = task.build()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=rate)
    module.train()
    for _ in range(epochs):
        optimizer.zero_grad()
        outputs = module(inputs[:32].to(parameters[0].dtype))
        torch.autograd.backward(task.loss(outputs.float(), labels[:32]).mean())
        optimizer.step()
    return module


class Still(nn.Module):
    """Keeps its BatchNorm in evaluation mode while the rest trains, by a `train` of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def train(self, mode: bool = True) -> Still:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.relu(self.norm(self.first(x))))
        return out


def test_a_module_s_own_train_is_respected() -> None:
    task = task_of(Still)
    assert [part.name for part in task.layout.parts if not part.trained] == []  # nothing changes its statistics
    model = FlatModel(task, CPU)
    assert isinstance(model.module, Still)
    model.mode(training=True)
    assert (model.module.training, model.module.first.training, model.module.norm.training) == (True, True, False)
    model.mode(training=False)
    assert not any(part.training for part in model.module.modules())
    _, after = trained(task)
    expected = by_torch(task)
    assert after == pytest.approx(torch.nn.utils.parameters_to_vector(expected.parameters()).detach().numpy(), abs=1e-6)
    assert expected.get_buffer("norm.running_mean").tolist() == [0.0] * 5


class Viewing(nn.Module):
    """A CNN as it stands in many a notebook: `.view` wants its images in the usual order of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        out: Tensor = self.head(x.view(x.shape[0], -1))
        return out


class Reshaping(Viewing):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        out: Tensor = self.head(x.flatten(1))
        return out


@pytest.mark.parametrize("build", [Viewing, Reshaping])
def test_a_cnn_trains_whatever_order_of_memory_it_relies_on(build: type[nn.Module]) -> None:
    _, after = trained(task_of(build, IMAGES))
    expected = torch.nn.utils.parameters_to_vector(by_torch(task_of(build, IMAGES)).parameters()).detach().numpy()
    assert after == pytest.approx(expected, abs=2e-6)


def test_the_order_of_memory_is_chosen_once_and_for_whom_it_suits() -> None:
    hooks = [FlatModel(task_of(build, IMAGES), CPU).module for build in (Viewing, Reshaping)]
    assert [len(module.get_submodule("first")._forward_pre_hooks) for module in hooks] == [0, 1]


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()


def test_parameters_and_statistics_in_float64_train_and_travel() -> None:
    task = task_of(wide)
    start, after = trained(task)
    expected = by_torch(task)
    values = torch.nn.utils.parameters_to_vector(expected.parameters()).detach()
    assert after[:63] == pytest.approx(values.numpy(), abs=1e-5)
    assert start.size == after.size == 63 + 10 and after.dtype == np.float32
    statistics = torch.cat([expected.get_buffer("1.running_mean"), expected.get_buffer("1.running_var")])
    assert after[63:] == pytest.approx(statistics.numpy(), rel=1e-5)
    assert np.abs(after[63:68]).max() > 0.01


def coarse() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(torch.bfloat16)


def test_steps_that_bfloat16_cannot_see_add_up_in_the_flat_vector() -> None:
    """A step of less than 2^-8 of a weight is lost in the weight itself; the copy in float32 keeps it."""
    task = task_of(coarse)
    start, after = trained(task, epochs=20, rate=1e-3)
    plain = task_of(lambda: coarse().float())
    full_start, full = trained(plain, epochs=20, rate=1e-3, model=start)
    assert np.array_equal(start, full_start)
    assert np.linalg.norm((after - start) - (full - start)) < 0.05 * np.linalg.norm(full - start)


def test_loading_gives_every_tensor_its_values_whatever_its_type() -> None:
    task = task_of(wide)
    model = FlatModel(task, CPU)
    vector = np.linspace(-1, 1, 73).astype(np.float32)
    model.load(vector)
    found = torch.cat([tensor.detach().flatten() for tensor in task.layout.tensors(model.module)])
    assert found.dtype == torch.float64 and np.array_equal(found.numpy(), vector.astype(np.float64))
    assert np.array_equal(model.gathered().numpy(), vector)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(x), "hidden": x}


def test_a_model_that_returns_a_dictionary_trains_and_leaves_its_unused_head_alone() -> None:
    start, after = trained(task_of(Wrapped))
    assert not np.array_equal(start[:21], after[:21])
    assert np.array_equal(start[21:], after[21:])
    plain = task_of(lambda: nn.Linear(6, 3))
    _, expected = trained(plain, model=start[:21])
    assert after[:21] == pytest.approx(expected, abs=1e-6)


def test_what_is_frozen_keeps_its_values_while_the_head_trains() -> None:
    task = replace(
        task_of(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))),
        trained=lambda name: name.startswith("2."),
    )
    model = FlatModel(task, CPU)
    before = model.module.state_dict()["0.weight"].clone()
    start, after = trained(task)
    assert start.size == 18 and not np.array_equal(start, after)
    assert torch.equal(FlatModel(task, CPU).module.state_dict()["0.weight"], before)
    assert torch.equal(model.module.state_dict()["0.weight"], before)
