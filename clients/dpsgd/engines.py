"""Per-record gradients three ways: `torch.func.vmap`, Opacus' hooks, and ghost norms of Linear layers.

`vmap` (and `hooks`) keep a gradient for each record; `ghost` finds norms and sums from inputs and slopes. Sums are in
float64, whatever the type of the module. All take the trainable parameters in the order of `module.parameters()`, read
them where they stand, and leave `.grad` alone. Features and labels (trees, of each
tensor the first dimension the record) lie on the module's device.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import Linear

from sovfed.clients.dpsgd.layers import trainable_layers
from sovfed.federation.errors import PrivacyError
from sovfed.federation.tasks.trees import Tree, mapped, rows, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from torch.nn import Module, Parameter

    RecordLoss = Callable[[Tensor, Any], Tensor]

TINY = torch.finfo(torch.float32).tiny
BLOCK = 1 << 19  # values that are widened to float64 at once
RUN = 1 << 10  # squares that are added up in float32 at most


class VmapEngine:
    """Differentiates each record's loss by itself: nothing of another record can enter. The oracle of the others."""

    def __init__(self, module: Module, loss: RecordLoss) -> None:
        self._values = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}

        def record_loss(values: dict[str, Tensor], record: Tree, label: Tree) -> Tensor:
            logits = functional_call(module, values, (mapped(_alone, record),))
            return loss(logits, mapped(_alone, label))[0]

        self._gradients = vmap(grad(record_loss), in_dims=(None, 0, 0), randomness="different")

    def gradients(self, features: Tree, labels: Tree) -> list[Tensor]:
        """For each trainable parameter, the gradient of each record's loss, shape [n, size]."""
        by_name = self._gradients(self._values, features, labels)
        return [by_name[name].reshape(size(features), -1) for name in self._values]

    own = gradients  # what each record has of its own


class HooksEngine:
    """Opacus' `GradSampleHooks`: one batched pass, each layer's gradients from its input and its output's gradient."""

    def __init__(self, module: Module, loss: RecordLoss) -> None:
        self._module, self._loss = module, loss
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._layers, self._reached = trainable_layers(module), _smallest(module)
        self._hooks = _opacus()(module, loss_reduction="sum")
        self._hooks.disable_hooks()

    def gradients(self, features: Tree, labels: Tree) -> list[Tensor]:
        """For each trainable parameter, the gradient of each record's loss, shape [n, size]."""
        _forget(self._layers)
        self._hooks.enable_hooks()
        try:
            with torch.enable_grad():
                losses = self._loss(self._module(features), labels)
                # The hooks need the pass to come by, not its gradients: ask for the smallest of each layer.
                torch.autograd.grad(losses.sum(), self._reached)
            return [_shaped(getattr(parameter, "grad_sample", None), size(features)) for parameter in self._parameters]
        finally:
            self._hooks.disable_hooks()
            _forget(self._layers)

    own = gradients  # what each record has of its own


class GhostEngine:
    """A record's gradient in a Linear layer is slope ⊗ input: its norm and the clipped sum without the gradient itself.

    After Goodfellow 2015, arXiv:1510.01799. Only for models whose trainable layers are all Linear over one position.
    Norms and sums are taken in float64; only inputs and slopes, which are each record's own, are of the module's type.
    """

    def __init__(self, module: Module, loss: RecordLoss) -> None:
        self._module, self._loss = module, loss
        self._layers = [layer for layer in trainable_layers(module) if isinstance(layer, Linear)]
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def clipped(self, features: Tree, labels: Tree, count: int, bound: float) -> tuple[list[Tensor], int]:
        """The float64 sum of the first `count` records' gradients, each clipped to `bound`, by parameter.

        And how many of them were finite: the others are left out.
        """
        passes = self._passes(features, labels)
        squares = torch.zeros(size(features), dtype=torch.float64, device=passes[0][1].device)
        for layer, inputs, slopes in passes:
            wide = inputs.square().sum(1) if layer.weight.requires_grad else torch.zeros_like(squares)
            if layer.bias is not None and layer.bias.requires_grad:
                wide = wide + 1
            squares += wide * slopes.square().sum(1)
        used, factors = factors_of(squares.sqrt(), count, bound)
        by_parameter: dict[int, Tensor] = {}
        if not used.all():  # zero times infinity is not zero
            passes = [(layer, _only(used, inputs), _only(used, slopes)) for layer, inputs, slopes in passes]
        for layer, inputs, slopes in passes:
            weighted = slopes * factors.unsqueeze(1)
            if layer.weight.requires_grad:
                by_parameter[id(layer.weight)] = (weighted.T @ inputs).flatten()
            if layer.bias is not None and layer.bias.requires_grad:
                by_parameter[id(layer.bias)] = weighted.sum(0)
        sums = [
            by_parameter[id(parameter)] if id(parameter) in by_parameter else self._zeros(parameter)
            for parameter in self._parameters
        ]
        return sums, int(used.sum())

    def own(self, features: Tree, labels: Tree) -> list[Tensor]:
        """What each record has of its own: inputs and slopes of every layer, [n, width]."""
        return [tensor for _, inputs, slopes in self._passes(features, labels) for tensor in (inputs, slopes)]

    def _passes(self, features: Tree, labels: Tree) -> list[tuple[Linear, Tensor, Tensor]]:
        """Of each layer that was used its inputs and the slopes of the losses at its outputs, float64 [n, width]."""
        calls: list[tuple[Linear, Tensor, Tensor]] = []

        def watch(layer: Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not isinstance(layer, Linear):
                raise PrivacyError("ghost clipping is for Linear layers; use engine vmap")
            calls.append((layer, args[0].detach(), output))
            return output.clone()  # what follows may change its input in place

        handles = [layer.register_forward_hook(watch) for layer in self._layers]
        try:
            with torch.enable_grad():
                losses = self._loss(self._module(features), labels)
                slopes = torch.autograd.grad(
                    losses.sum(), [output for _, _, output in calls], allow_unused=True, materialize_grads=True
                )
        finally:
            for handle in handles:
                handle.remove()
        return [
            (layer, inputs.double(), slope.double()) for (layer, inputs, _), slope in zip(calls, slopes, strict=True)
        ]

    @staticmethod
    def _zeros(parameter: Parameter) -> Tensor:
        return torch.zeros(parameter.numel(), dtype=torch.float64, device=parameter.device)


Engine = VmapEngine | HooksEngine | GhostEngine


def build_engine(name: str, module: Module, loss: RecordLoss) -> Engine:
    """The engine called `name`, one of `layers.ENGINES`."""
    engines: dict[str, Callable[[Module, RecordLoss], Engine]]
    engines = {"vmap": VmapEngine, "hooks": HooksEngine, "ghost": GhostEngine}
    return engines[name](module, loss)


def one_by_one(module: Module, loss: RecordLoss, features: Tree, labels: Tree) -> Iterator[Tensor]:
    """Each record's gradient over the trainable parameters, shape [d'], by plain autograd on a batch of one."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for row in range(size(features)):
        record = slice(row, row + 1)
        losses = loss(module(rows(features, record)), rows(labels, record))
        gradients = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
        yield torch.cat([gradient.flatten() for gradient in gradients])


def _alone(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


def clip_factors(norms: Tensor, bound: float) -> Tensor:
    """min(1, bound / norm) of each, shape [n]; `norms` are finite."""
    return (bound / norms.clamp_min(TINY)).clamp_max(1.0)


def factors_of(norms: Tensor, count: int, bound: float) -> tuple[Tensor, Tensor]:
    """Which of the first `count` rows have a finite norm, and what each row is multiplied with: zero for the others."""
    used = norms.isfinite()
    used[count:] = False
    return used, torch.where(used, clip_factors(torch.where(used, norms, 1.0), bound), 0.0)


def clip_and_sum(gradients: Sequence[Tensor], count: int, bound: float) -> tuple[list[Tensor], int]:
    """The float64 sum over the first `count` rows of [n, size] parts, each row (over all parts) clipped to `bound`.

    And how many rows were finite: the others are left out. A row's factor depends on that row alone; its norm is off
    by less than 2^-14, since no more than `RUN` squares are added up in the type of the gradients.
    """
    squares = torch.zeros(len(gradients[0]), dtype=torch.float64, device=gradients[0].device)
    for gradient in gradients:
        full = gradient.shape[1] // RUN * RUN
        if full:
            runs = torch.linalg.vector_norm(gradient[:, :full].reshape(len(gradient), -1, RUN), dim=2)
            squares += runs.double().square_().sum(1)
        squares += gradient[:, full:].double().square().sum(1)
    used, factors = factors_of(squares.sqrt(), count, bound)
    if not used[:count].all():  # zero times infinity is not zero
        gradients = [_only(used, gradient) for gradient in gradients]
    return [_weigh(gradient[:count], factors[:count]) for gradient in gradients], int(used.sum())


def _only(used: Tensor, rows: Tensor) -> Tensor:
    """`rows` [n, size] with zeros in those that are not `used`."""
    return torch.where(used.unsqueeze(1), rows, 0.0)


def _weigh(rows: Tensor, factors: Tensor) -> Tensor:
    """factors @ rows in float64, of as many columns at once as a cache holds: shape [size]."""
    count, size = rows.shape
    width = max(1, BLOCK // max(1, count))
    weighted = torch.empty(size, dtype=torch.float64, device=rows.device)
    wide = torch.empty(count * min(width, size), dtype=torch.float64, device=rows.device)
    for start in range(0, size, width):
        block = rows[:, start : start + width]
        columns = wide[: block.numel()].view(block.shape).copy_(block)
        torch.mv(columns.T, factors, out=weighted[start : start + width])
    return weighted


def _smallest(module: Module) -> list[Parameter]:
    """The smallest trainable parameter of each layer, each once: a backward pass to them comes by every layer."""
    each = [
        min(
            (parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad),
            key=lambda parameter: parameter.numel(),
        )
        for layer in trainable_layers(module)
    ]
    return list(dict.fromkeys(each))


def _shaped(gradients: Tensor | None, count: int) -> Tensor:
    if gradients is None or len(gradients) != count:
        raise PrivacyError("Opacus' hooks found no gradient for a parameter; use engine vmap")
    return gradients.reshape(count, -1)


def _forget(layers: Sequence[Module]) -> None:
    """Drop what Opacus keeps on layers and parameters, so that a step that broke off leaves nothing to the next."""
    for layer in layers:
        for attribute in ("activations", "max_batch_len"):
            if hasattr(layer, attribute):
                delattr(layer, attribute)
        for parameter in layer.parameters(recurse=False):
            state: Any = parameter
            state.grad_sample, state._forward_counter = None, 0
            if hasattr(parameter, "_current_grad_sample"):
                delattr(parameter, "_current_grad_sample")


def _opacus() -> Any:
    """Opacus' class for hooks, imported without the handler that its import puts on the root logger.

    torch warns of hooks on a module whose inputs need no gradient, as is the rule for records.
    """
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from opacus.grad_sample import GradSampleHooks

    root.handlers[:], root.level = handlers, level
    return GradSampleHooks
