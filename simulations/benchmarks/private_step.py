"""`sovfed bench private-step`: what a private gradient step costs over a plain SGD step, ours and Opacus' engines.

CPU time of one thread, medians over turns; in every turn each system takes one step on the same batch, so that all
see the same load. A step is zero_grad, forward, backward, clipping and w ← w − lr·g; no noise is drawn (its price
depends on the generator, and Opacus' is not a secure one) and batches are ready in memory. `SGD` is torch.optim's.
Opacus runs as documented: GradSampleModule and DPOptimizer with noise_multiplier=0. Where one of its engines cannot
run a model, it has no row.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sovfed.clients.dpsgd.step import PrivateStep
from sovfed.federation.errors import ConfigError
from sovfed.federation.privacy.compatibility import EXAMPLES
from sovfed.federation.tasks.losses import cross_entropy
from sovfed.simulations.benchmarks.report import Bars, Column, Files, Report, conditions, publish

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

CLASSES: Final = 10
RATE: Final = 0.01
CLIP: Final = 1.0
OPACUS: Final = ("hooks", "functorch", "ew", "ghost")
COLUMNS: Final = (
    Column("model", "model"),
    Column("system", "system"),
    Column("parameters", "parameters", "{:,}".format),
    Column("batch", "batch"),
    Column("cpu_ms", "CPU ms", "{:.2f}".format),
    Column("over_sgd", "over SGD", "{:.2f}".format),
    Column("low", "1st quartile", "{:.2f}".format),
    Column("high", "3rd quartile", "{:.2f}".format),
    Column("engine", "engine"),
)


@dataclass(frozen=True)
class Setting:
    """A model with its batch size, and how many turns give a steady median."""

    name: str
    build: Callable[[], nn.Module]
    record: tuple[int, ...]  # shape of one record; of integers below `tokens` unless that is 0
    batch: int
    turns: int
    tokens: int = 0

    def batch_of(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` made-up records."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(count) % CLASSES
        if self.tokens:
            return torch.randint(self.tokens, (count, *self.record), generator=generator), labels
        return torch.randn(count, *self.record, generator=generator), labels


class Block(nn.Module):
    """A pre-norm transformer block of basic layers: Opacus has no rule for nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.project(self.before(hidden)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key, value = (projected.transpose(-2, -3) for projected in (query, key, value))
        weights = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, -1)
        hidden = hidden + self.merge((weights @ value).transpose(-2, -3).flatten(-2))
        widened: Tensor = self.narrow(functional.gelu(self.widen(self.between(hidden))))
        return hidden + widened


class Transformer(nn.Module):
    """Token classification by the mean of the last layer: tokens [n, length] → logits [n, classes]."""

    def __init__(self, layers: int, width: int, heads: int, tokens: int, length: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        # Opacus wants the positions of every record: with shape [1, length] its gradients would be wrong.
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape).contiguous()
        logits: Tensor = self.head(self.norm(self.blocks(self.token(tokens) + self.place(places))).mean(1))
        return logits


def mlp(*widths: int) -> nn.Module:
    """A perceptron with ReLU between layers of these widths."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    """Three convolutions with GroupNorm on [n, 1, 28, 28]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


SETTINGS: Final = (
    Setting("mlp", partial(mlp, 64, 256, 256, CLASSES), (64,), batch=256, turns=60),
    Setting("mlp_small", partial(mlp, 64, 56, CLASSES), (64,), batch=64, turns=200),
    Setting("cnn", cnn, (1, 28, 28), batch=64, turns=25),
    Setting("transformer", partial(Transformer, 3, 192, 6, 256, 64), (64,), batch=16, turns=25, tokens=256),
)


def run(*, quick: bool, files: Files, console: Console) -> dict[str, Any]:
    """Measure every model and publish the report; `quick` takes a third of the turns."""
    files.check()
    rows: list[dict[str, Any]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for setting in SETTINGS:
            rows += measure(setting, max(5, setting.turns // 3) if quick else setting.turns)
    finally:
        torch.set_num_threads(threads)
    bars = Bars("over_sgd", "low", "high", group="model", series="system", label="CPU time over plain SGD")
    report = Report(
        "A private step over a plain one", COLUMNS, rows, ratios(rows), bars=bars,
        conditions=conditions(threads=1, torch=torch.__version__, quick=quick),
    )  # fmt: skip
    return publish(report, console, files)


def measure(setting: Setting, turns: int) -> list[dict[str, Any]]:
    """A row for plain SGD, for ours and for each engine of Opacus that can run the model."""
    features, labels = setting.batch_of(setting.batch)
    steps: dict[str, Callable[[], None]] = {"sgd": _sgd(setting, features, labels)}
    own_step, engine = _ours(setting, features, labels)
    steps["sovfed"] = own_step
    for mode in OPACUS:
        step = _opacus(setting, mode, features, labels)
        try:
            step()
        except (RuntimeError, NotImplementedError, TypeError):
            continue  # ExpandedWeights has no rule for some layers
        steps[f"opacus_{mode}"] = step
    times_by_system: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 2):
        for name, step in steps.items():
            started = time.thread_time()
            step()
            if turn >= 2:
                times_by_system[name].append(1e3 * (time.thread_time() - started))
    plain = statistics.median(times_by_system["sgd"])
    parameters = sum(parameter.numel() for parameter in setting.build().parameters())
    return [
        _row(setting, name, parameters, times, plain, engine if name == "sovfed" else "")
        for name, times in times_by_system.items()
    ]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """`ours_over_best_opacus_<model>`: our time ÷ that of Opacus' fastest engine (below 1: ours is faster)."""
    quotients = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        times = {row["system"]: row["cpu_ms"] for row in rows if row["model"] == model}
        best = min((time_ms for name, time_ms in times.items() if name.startswith("opacus_")), default=None)
        if best is None:
            raise ConfigError(f"no engine of Opacus ran model '{model}'")
        quotients[f"ours_over_best_opacus_{model}"] = times["sovfed"] / best
    return quotients


def _row(
    setting: Setting, system: str, parameters: int, times: list[float], plain: float, engine: str
) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(times, n=4)
    return {
        "model": setting.name,
        "system": system,
        "parameters": parameters,
        "batch": setting.batch,
        "cpu_ms": middle,
        "over_sgd": middle / plain,
        "low": low / plain,
        "high": high / plain,
        "engine": engine,
    }


def _sgd(setting: Setting, features: Tensor, labels: Tensor) -> Callable[[], None]:
    module = setting.build()
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(module(features), labels))
        optimizer.step()

    return step


def _ours(setting: Setting, features: Tensor, labels: Tensor) -> tuple[Callable[[], None], str]:
    module = setting.build()
    model = torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
    private = PrivateStep(module, cross_entropy, CLIP, example=setting.batch_of(EXAMPLES), several_records=False)
    persons = torch.arange(len(labels))

    def step() -> None:
        total, _ = private.clipped_sum(model, features, labels, persons)
        model.sub_(total, alpha=RATE / len(labels))

    return step, private.engine


def _opacus(setting: Setting, mode: str, features: Tensor, labels: Tensor) -> Callable[[], None]:
    from opacus.grad_sample.utils import wrap_model
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    ghost = mode == "ghost"
    more = {"max_grad_norm": CLIP} if ghost else {}
    module = wrap_model(setting.build(), mode, loss_reduction="mean", **more)
    optimizer = (DPOptimizerFastGradientClipping if ghost else DPOptimizer)(
        torch.optim.SGD(module.parameters(), lr=RATE),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=len(labels),
    )
    criterion: Any = nn.CrossEntropyLoss()
    if ghost:
        criterion = DPLossFastGradientClipping(module, optimizer, criterion)

    def step() -> None:
        optimizer.zero_grad()
        criterion(module(features), labels).backward()
        optimizer.step()

    return step
