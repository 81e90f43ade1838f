"""What holds for the model of every family, and that each of them learns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.federation.tasks.declared_cases import HEAD, MODELS, TARGETS, text_of
from torch import Tensor
from torch.func import functional_call, grad, vmap

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.networks import TextBody, cnn, resnet, tabular_resnet

COUNT = 32
STEPS = 60


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads than one wait for each other in models so small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _made_up(task: DeclaredTask, count: int) -> tuple[Any, Any]:
    return task.made_up(count)


def _rows(tree: Any, rows: slice) -> Any:
    return {name: part[rows] for name, part in tree.items()} if isinstance(tree, dict) else tree[rows]


def _lifted(tree: Any) -> Any:
    return {name: part[None] for name, part in tree.items()} if isinstance(tree, dict) else tree[None]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_a_records_outputs_and_loss_are_its_own_and_finite(model: str, target: str) -> None:
    task = task_from_text(text_of(model, target))
    inputs, targets = _made_up(task, 5)
    module = task.model().eval()
    assert task.loss is not None
    with torch.no_grad():
        together = module(inputs)
        alone = torch.cat([module(_rows(inputs, slice(row, row + 1))) for row in range(5)])
        losses = task.loss(together, targets)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert losses.shape == (5,) and bool(losses.isfinite().all())
    assert not task.layout.coupled and not [part for part in task.layout.parts if not part.trained]


@pytest.mark.parametrize("model", MODELS)
def test_gradients_of_single_records_can_be_taken_all_at_once(model: str) -> None:
    """As differential privacy needs them: torch.func's equal autograd's of each record."""
    task = task_from_text(text_of(model, "survival"))
    inputs, targets = _made_up(task, 3)
    module, loss = task.model().eval(), task.loss
    assert loss is not None
    values = {name: value.detach() for name, value in module.named_parameters()}

    def one(values: dict[str, Tensor], record: Any, target: Any) -> Tensor:
        outputs = functional_call(module, values, (_lifted(record),))
        return loss(outputs, _lifted(target))[0]

    found = vmap(grad(one), in_dims=(None, 0, 0))(values, inputs, targets)
    losses = loss(module(inputs), targets)
    for row in range(3):
        wanted = torch.autograd.grad(losses[row], list(module.parameters()), retain_graph=True)
        for name, gradient in zip(values, wanted, strict=True):
            torch.testing.assert_close(found[name][row], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("mlp", "survival"), ("tabular_resnet", "number"), ("cnn and numbers", "labels"), ("resnet", "binary"),
        ("transformer", "classes"),
    ],
)  # fmt: skip
def test_every_family_learns_made_up_records_by_heart(model: str, target: str) -> None:
    task = task_from_text(text_of(model, target))
    before, after = _trained(task)
    assert after < 0.6 * before


def _trained(task: DeclaredTask) -> tuple[float, float]:
    """The mean loss over a few records before and after Adam's steps, written out."""
    inputs, targets = _made_up(task, COUNT)
    module, loss = task.model(1).train(), task.loss
    assert loss is not None
    parameters = list(module.parameters())
    first, second = ([torch.zeros_like(one) for one in parameters] for _ in range(2))
    losses = []
    for step in range(1, STEPS + 1):
        value = loss(module(inputs), targets).mean()
        losses.append(float(value.detach()))
        gradients = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            for one, gradient, mean, square in zip(parameters, gradients, first, second, strict=True):
                mean.lerp_(gradient, 0.1)
                square.lerp_(gradient**2, 0.01)
                one.sub_(0.01 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-8))
    return losses[0], min(losses[-5:])


def test_what_stands_behind_a_texts_end_is_not_read() -> None:
    torch.manual_seed(0)
    body = TextBody(20, 16, 1, 2, 4, 0.0).eval()
    short = torch.zeros(1, 20, dtype=torch.int16)
    short[0, :8] = torch.arange(1, 9)
    with torch.no_grad():
        body.position[2:] += 100.0  # places 8 to 19 are empty
        there = body(short)
        body.position[2:] -= 200.0
        assert torch.allclose(there, body(short))
        assert bool(body(torch.zeros(1, 20, dtype=torch.int16)).isfinite().all())


def test_images_of_any_size_go_through() -> None:
    for size in (1, 7, 64, 100):
        image = torch.randn(2, 3, size, size)
        assert cnn(3, (8, 16))(image).shape == (2, 16)
        assert resnet(3, size, (8, 16), 1)(image).shape == (2, 16)


def test_the_table_resnet_has_the_parameters_of_its_paper() -> None:
    """By hand: first layer, two blocks of norm and two layers, norm and head."""
    module = tabular_resnet(10, 8, 16, 2, 3, 0.1, "layer")
    wanted = (10 * 8 + 8) + 2 * (16 + 8 * 16 + 16 + 16 * 8 + 8) + 16 + (8 * 3 + 3)
    assert sum(parameter.numel() for parameter in module.parameters()) == wanted


@pytest.mark.parametrize(
    ("model", "columns", "told"),
    [
        ("{family: linear}", "{scan: {kind: image, shape: [1, 4, 4]}}", "the columns have image"),
        (
            "{family: cnn}",
            "{age: {kind: number, low: 0, high: 1}}",
            "exactly one image column, the columns have no",
        ),
        ("{family: transformer}", "{scan: {kind: image, shape: [1, 4, 4]}}", "exactly one text column"),
        ("{family: transformer, width: 10, heads: 3}", "{note: {kind: text, shape: [9]}}", "no multiple of heads"),
        ("{family: mpl}", "{age: {kind: number, low: 0, high: 1}}", "did you mean 'mlp'"),
        ("{family: mlp, hiden: [3]}", "{age: {kind: number, low: 0, high: 1}}", "did you mean 'hidden'"),
        ("{family: mlp, hidden: [0]}", "{age: {kind: number, low: 0, high: 1}}", "hidden"),
        ("{family: mlp, hidden: []}", "{age: {kind: number, low: 0, high: 1}}", "hidden has 0 sizes"),
        ("{family: os.system}", "{age: {kind: number, low: 0, high: 1}}", "model.family"),
        ("{family: linear}", "{}", "no column is an input"),
    ],
)
def test_a_model_that_does_not_fit_its_columns_is_refused(model: str, columns: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        task_from_text(f"{HEAD}columns: {columns}\n{TARGETS['binary']}model: {model}\n")


def test_a_model_that_is_too_large_is_refused_before_memory_is_taken() -> None:
    hidden = ", ".join(["8192"] * 20)
    task = task_from_text(text_of().replace("family: linear", f"family: mlp, hidden: [{hidden}]"))
    with pytest.raises(ConfigError, match="make it smaller"):
        task.model()


@pytest.mark.parametrize(
    ("column", "model"),
    [
        ("{kind: image, shape: [1, 4096, 4096]}", "{family: cnn, widths: [8192]}"),  # 80,000 parameters, 512 GiB
        ("{kind: image, shape: [1, 4096, 4096]}", "{family: resnet, widths: [32], blocks: 1}"),
        ("{kind: text, shape: [65536]}", "{family: transformer, patch: 1, heads: 64}"),
    ],
)
def test_a_small_file_takes_not_all_memory_of_who_looks_at_it(column: str, model: str) -> None:
    task = task_from_text(
        "name: big\ntitle: t\nperson: one row a person\n"
        f"columns: {{thing: {column}}}\n"
        f"target: {{kind: binary, column: ill, classes: ['no', 'yes']}}\nmodel: {model}\n"
    )
    with pytest.raises(ConfigError, match="values at once for a single record"):
        task.digest  # noqa: B018
