"""Which tensors of a model travel, and where each stands: every place by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sovfed.federation.errors import ConfigError
from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.tasks import Task, initial_vector
from sovfed.federation.tasks.columns import Column, Schema, number, target
from sovfed.federation.tasks.losses import cross_entropy
from sovfed.federation.tasks.trees import leaves, size

if TYPE_CHECKING:
    from collections.abc import Callable

NUMBERS = Schema((*(number(f"c{place}", 0, 1) for place in range(4)), target("y", "a", "b", "c")))
TWO_INPUTS = Schema((number("age", 0, 1), number("pulse", 0, 1, shape=(3,)), target("y", "a", "b", "c")))


def task_of(build: Callable[[], nn.Module], schema: Schema = NUMBERS) -> Task:
    return Task(
        name="mine", title="t", schema=schema, metrics=ClassMetrics(3), headline="auc", build=build, loss=cross_entropy
    )


def names(task: Task) -> list[str]:
    return [part.name for part in task.layout.parts]


def mlp(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


def test_parameters_stand_in_torch_s_order_one_behind_the_other() -> None:
    layout = task_of(mlp).layout
    assert [(part.name, part.shape, part.place) for part in layout.parts] == [
        ("0.weight", (8, 4), slice(0, 32)),
        ("0.bias", (8,), slice(32, 40)),
        ("2.weight", (3, 8), slice(40, 64)),
        ("2.bias", (3,), slice(64, 67)),
    ]
    assert (layout.size, layout.trained, layout.coupled) == (67, 67, False)
    assert task_of(mlp).parameters == 67


def frozen_backbone() -> nn.Module:
    module = mlp()
    module[0].requires_grad_(False)
    return module


def half_frozen() -> nn.Module:
    module = mlp()
    module[0].bias.requires_grad_(False)
    return module


def test_what_is_frozen_does_not_travel_and_is_built_the_same_everywhere() -> None:
    task = task_of(frozen_backbone)
    assert (names(task), task.parameters) == (["2.weight", "2.bias"], 27)
    one, other = task.model(), task.model()
    assert torch.equal(one.state_dict()["0.weight"], other.state_dict()["0.weight"])
    assert [parameter.requires_grad for parameter in one.parameters()] == [False, False, True, True]
    assert names(task_of(half_frozen)) == ["0.weight", "2.weight", "2.bias"]


def test_a_task_may_choose_by_name_what_is_trained() -> None:
    task = replace(task_of(mlp), trained=lambda name: name.startswith("2."))
    assert (names(task), task.parameters) == (["2.weight", "2.bias"], 27)
    assert [parameter.requires_grad for parameter in task.model().parameters()] == [False, False, True, True]
    frozen = replace(task_of(frozen_backbone), trained=lambda _: True)
    assert names(frozen) == ["2.weight", "2.bias"]  # what the model froze stays frozen


class Masked(nn.Module):
    """Constant buffers: a causal mask with −inf, a positional code, a counter; none of them is anybody's to average."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))
        self.register_buffer("code", torch.randn(4))
        self.steps: Tensor
        self.code: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("holes", torch.full((2,), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        out: Tensor = self.head(x + self.code)
        return out


def test_constant_buffers_do_not_travel_whatever_is_in_them() -> None:
    task = task_of(Masked)
    assert (names(task), task.parameters) == (["head.weight", "head.bias"], 15)
    assert np.isfinite(initial_vector(task, 0)).all()
    assert torch.equal(task.model().state_dict()["code"], task.model().state_dict()["code"])


class Replacing(nn.Module):
    """Puts another tensor in a buffer's place: a statistic, or a cache."""

    kept: Tensor

    def __init__(self, kept: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self._change = nn.Linear(4, 3), change
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self._change(self.kept, x)
        out: Tensor = self.head(x)
        return out


def test_a_statistic_that_is_replaced_rather_than_changed_is_refused_and_a_cache_is_not() -> None:
    """Who shares the model's memory would never see the new one, and the average would be of the old."""
    with pytest.raises(ConfigError, match="buffer 'kept' is replaced in each pass; change it in place"):
        _ = task_of(lambda: Replacing(torch.zeros(4), lambda kept, x: 0.9 * kept + 0.1 * x.mean(0))).layout
    in_place = task_of(lambda: Replacing(torch.zeros(4), lambda kept, x: kept.mul_(0.9).add_(x.mean(0))))
    assert names(in_place) == ["head.weight", "head.bias", "kept"]
    anew = task_of(lambda: Replacing(torch.ones(4), lambda kept, _: kept.clone()))
    growing = task_of(lambda: Replacing(torch.ones(4), lambda kept, _: torch.cat([kept, kept])))
    assert names(anew) == names(growing) == ["head.weight", "head.bias"]


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_running_statistics_travel_behind_the_parameters() -> None:
    layout = task_of(normed).layout
    assert [part.name for part in layout.parts] == [
        "0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "1.running_mean", "1.running_var",
    ]  # fmt: skip
    assert (layout.trained, layout.size) == (20 + 5 + 5 + 5 + 15 + 3, 53 + 10)
    assert np.flatnonzero(layout.normalisation).tolist() == [*range(25, 35), *range(53, 63)]
    assert layout.coupled
    assert initial_vector(task_of(normed), 0)[53:].tolist() == [0.0] * 5 + [1.0] * 5


def still_normed() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))
    module[1].requires_grad_(False)
    return module


def test_a_norm_without_statistics_or_weights_to_train_sends_nothing() -> None:
    assert names(task_of(still_normed)) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert task_of(still_normed).layout.coupled


def test_statistics_travel_in_units_of_what_they_may_move_by_and_come_back() -> None:
    layout = task_of(normed).layout
    model = np.zeros(63, np.float32)
    model[53:] = [0, 0, 0, 0, -100, 1, 1, 1, 1, 50]
    update = (np.arange(63) / 10).astype(np.float32)
    update[53:] = [0, 4, -8, 16, 400, 8, 0, 0, 0, -25]
    sent = layout.sent(update, model)
    # reach is 8 · max(1, |m|): 8, 800 for the mean of −100, 400 for the variance of 50; 16 / 8 is cut to 1
    assert sent[53:].tolist() == [0, 0.5, -1, 1, 0.5, 1, 0, 0, 0, -0.0625]
    assert sent[:53].tolist() == update[:53].tolist()
    received = layout.received(sent, model)
    assert received[53:].tolist() == [0, 4, -8, 8, 400, 8, 0, 0, 0, -25]
    plain = task_of(mlp).layout
    assert plain.sent(update, model) is update


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.temperature = nn.Linear(4, 3), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x) / self.temperature
        return out


def test_a_parameter_without_dimensions_has_one_place() -> None:
    task = task_of(Scalar)
    assert [(part.name, part.shape, part.place) for part in task.layout.parts] == [
        ("temperature", (), slice(0, 1)),
        ("head.weight", (3, 4), slice(1, 13)),
        ("head.bias", (3,), slice(13, 16)),
    ]
    assert initial_vector(task, 0)[0] == 2.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_another_type_takes_and_gives_what_it_did(dtype: torch.dtype) -> None:
    task = task_of(lambda: mlp().to(dtype))
    assert task.parameters == 67
    vector = initial_vector(task, 0)
    assert vector.dtype == np.float32
    inputs, _ = task.made_up(3)
    assert isinstance(inputs, Tensor) and inputs.dtype == torch.float32
    with torch.no_grad():
        found = task.model()(inputs)
        plain = task.layout.tensors(task.model())
    assert found.shape == (3, 3)
    assert {tensor.dtype for tensor in plain} == {dtype}
    assert torch.equal(plain[0].float().flatten(), torch.from_numpy(vector[:32]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.code, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
        self.head.weight = self.code.weight
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.head(self.code(x.long()).mean(1)))
        return out


TOKENS = Schema((Column("word", "tokens", low=0.0, high=9.0, shape=(6,)), target("y", "a", "b", "c")))


def test_tied_weights_travel_once() -> None:
    task = task_of(Tied, TOKENS)
    assert (names(task), task.parameters) == (["code.weight", "last.weight", "last.bias"], 40 + 30 + 3)
    model = task.model()
    assert isinstance(model, Tied) and model.head.weight is model.code.weight


class Unused(nn.Module):
    """A head that no loss reaches: it stands where it is, and every institution leaves it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = nn.Linear(4, 3), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


def test_a_head_that_is_not_used_has_its_place_all_the_same() -> None:
    assert (names(task_of(Unused))[2:], task_of(Unused).parameters) == (["spare.weight", "spare.bias"], 15 + 35)


@dataclass
class ModelOutput:
    """As libraries of language models return it."""

    logits: Tensor
    hidden: Tensor


class Returning(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.head, self._how = nn.Linear(4, 3), how

    def forward(self, x: Tensor) -> object:
        logits = self.head(x)
        return {
            "tensor": logits, "tuple": (logits, x), "list": [logits, x], "dict": {"hidden": x, "logits": logits},
            "other dict": {"scores": logits, "hidden": x}, "object": ModelOutput(logits, x), "text": "no", "none": None,
            "empty": {},
        }[self._how]  # fmt: skip


@pytest.mark.parametrize("how", ["tensor", "tuple", "list", "dict", "other dict", "object"])
def test_the_output_is_found_in_what_models_return_and_names_stay_as_they_were(how: str) -> None:
    task = task_of(lambda: Returning(how))
    assert names(task) == ["head.weight", "head.bias"]
    inputs, _ = task.made_up(5)
    model = task.model()
    with torch.no_grad():
        found = model(inputs)
    assert isinstance(found, Tensor) and found.shape == (5, 3)
    assert torch.equal(found, task_of(lambda: Returning("tensor")).model()(inputs))
    assert task.layout.vector(model).tolist() == initial_vector(task, 0).tolist()


@pytest.mark.parametrize(("how", "kind"), [("text", "str"), ("none", "NoneType"), ("empty", "NoneType")])
def test_a_model_that_returns_no_tensor_is_refused_with_the_way_out(how: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"the model returns {kind}; give the task a `predict`"):
        _ = task_of(lambda: Returning(how)).layout


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm = nn.Linear(4, 3), nn.LayerNorm(4)

    def forward(self, pulse: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(torch.cat([x, pulse], 1)))
        return out


def test_several_inputs_come_by_their_names() -> None:
    task = task_of(ByName, TWO_INPUTS)
    assert names(task) == ["head.weight", "head.bias", "norm.weight", "norm.bias"]
    assert np.flatnonzero(task.layout.normalisation).tolist() == list(range(15, 23))
    inputs, _ = task.made_up(5)
    assert isinstance(inputs, dict) and {name: tuple(part.shape) for name, part in inputs.items()} == {
        "x": (5, 1), "pulse": (5, 3),
    }  # fmt: skip
    assert size(inputs) == 5
    assert task.model()(inputs).shape == (5, 3)


def test_a_task_says_how_its_model_is_called() -> None:
    task = replace(task_of(mlp, TWO_INPUTS), predict=lambda model, inputs: model(torch.cat(leaves(inputs), 1)))
    assert names(task) == names(task_of(mlp))
    assert task.model()(task.made_up(2)[0]).shape == (2, 3)


def test_wrapped_and_plain_models_of_one_seed_have_the_same_vector() -> None:
    wrapped = replace(task_of(normed), predict=lambda model, inputs: model(inputs))
    assert names(wrapped) == names(task_of(normed))
    assert initial_vector(wrapped, 3).tolist() == initial_vector(task_of(normed), 3).tolist()
    assert np.array_equal(wrapped.layout.normalisation, task_of(normed).layout.normalisation)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.wave = nn.Parameter(torch.zeros(2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: nn.Linear(5, 3), r"the model does not take \[5, 4\] of torch.float32: RuntimeError"),
        (lambda: mlp().requires_grad_(False), "no parameter that is trained"),
        (nn.ReLU, "no parameter that is trained"),
        (Complex, "parameter 'wave' is torch.complex64"),
        (ByName, "the model does not take .*TypeError"),
    ],
)
def test_a_model_that_cannot_be_sent_is_refused_before_a_record_is_read(
    build: Callable[[], nn.Module], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _ = task_of(build).layout


def test_a_model_that_is_longer_than_what_travels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovfed.federation.tasks.layout.MAX_PARAMETERS", 66)
    with pytest.raises(ConfigError, match="67 values to send, at most 66 travel"):
        _ = task_of(mlp).layout


def test_the_trial_leaves_nothing_in_the_model_that_is_trained() -> None:
    task = task_of(normed)
    before = task.layout
    state = task.model().state_dict()
    assert state["1.running_mean"].tolist() == [0.0] * 5 and int(state["1.num_batches_tracked"]) == 0
    assert task.layout is before


def test_a_model_that_a_function_makes_of_a_global_generator_is_the_same_everywhere() -> None:
    torch.manual_seed(1)
    one = initial_vector(task_of(mlp), 7)
    torch.manual_seed(2)
    assert np.array_equal(one, initial_vector(task_of(mlp), 7))


def test_frozen_weights_count_in_the_digest() -> None:
    def build(value: float) -> nn.Module:
        base = nn.Linear(4, 4)
        with torch.no_grad():
            base.weight.fill_(value)
        for parameter in base.parameters():
            parameter.requires_grad_(False)
        return nn.Sequential(base, nn.Linear(4, 3))

    one, again, other = (task_of(lambda value=value: build(value)) for value in (0.5, 0.5, 0.25))  # type: ignore[misc]
    assert one.layout.frozen and one.digest == again.digest != other.digest
    assert task_of(mlp).layout.frozen == ""
