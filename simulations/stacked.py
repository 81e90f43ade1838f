"""Copies of one model as one computation: each parameter has one more dimension in front, [copies, *shape]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from sovfed.federation.tasks.trees import Tree, flattened, leaves

if TYPE_CHECKING:
    from sovfed.federation.config import Config

RecordLoss: TypeAlias = Callable[[Tensor, Any], Tensor]
CHUNK_BYTES: Final = 512 << 20  # main memory that one chunk of institutions may take
CHUNK_SHARE: Final = 0.25  # of free device memory, likewise
MODEL_COPIES: Final = 8  # float32 of d a model in the stack needs at its peak: model, gradient, update, …
KEPT_OUTPUTS: Final = 3  # float32 of every layer's output: forward, backward, and in between
ELEMENTWISE: Final = (
    nn.ELU, nn.GELU, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus,
    nn.Tanh,
)  # fmt: skip


def refusal(module: nn.Module, config: Config) -> str:
    """Why local training of `module` cannot be stacked, or ""."""
    if config.client.precision != "float32":
        return f"client.precision is {config.client.precision}, and loss scales adapt to one institution's gradients"
    if config.client.evaluation_records:
        return "client.evaluation_records takes a sample of each institution's own"
    if config.strategy.individual:
        return f"strategy '{config.strategy.name}' needs every institution's own update, and stacking adds them up"
    if not config.strategy.algorithm.stacked:
        return f"strategy '{config.strategy.name}' changes local training, of which only plain SGD is stacked"
    if config.task.keep_state:
        return "task.keep_state keeps something at each institution"
    for name, layer in module.named_modules():
        if getattr(layer, "track_running_stats", False):
            return f"{type(layer).__name__} '{name}' keeps running statistics, which every institution has its own of"
        if (
            isinstance(rate := getattr(layer, "p" if "Dropout" in type(layer).__name__ else "dropout", 0.0), float)
            and rate
        ):
            return f"{type(layer).__name__} '{name}' drops out at random, in an order that stacking would change"
    if any(parameter.requires_grad and parameter.dtype != torch.float32 for parameter in module.parameters()):
        return "parameters of another type than float32 are trained"
    return ""


class StackedModel:
    """Copies of `module` that are moved apart; parameters are lists of [copies, *shape], as `module.parameters()`."""

    def __init__(self, module: nn.Module, loss: RecordLoss) -> None:
        """`loss` maps outputs [n, …] and targets to the loss of each record [n]. Frozen parameters are shared."""
        self.module, self.loss = module.train(), loss
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._names, self._shapes = list(named), [parameter.shape for parameter in named.values()]
        self.chain = Chain.of(module, loss)

    @property
    def parameters(self) -> int:
        """Length d of the flat vector."""
        return sum(shape.numel() for shape in self._shapes)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of the last dimension of `vector` [… , d], [… , *shape] each."""
        parts = torch.split(vector, [shape.numel() for shape in self._shapes], dim=-1)
        return [tensor.view((*vector.shape[:-1], *shape)) for tensor, shape in zip(parts, self._shapes, strict=True)]

    def stack(self, vector: Tensor, copies: int) -> list[Tensor]:
        """`copies` of `vector` [d], to be moved apart."""
        return [tensor.expand(copies, *tensor.shape).clone() for tensor in self.split(vector)]

    def step(
        self, parameters: list[Tensor], features: Tree, labels: Tree, weights: Tensor, rate: float,
        pull: Callable[[], None],
    ) -> Tensor:  # fmt: skip
        """Move each copy by −rate · ∇ Σ weight·loss over its records; the losses. All are [copies, n, …].

        `pull` is called between gradient and move.
        """
        if self.chain is not None and isinstance(features, Tensor):
            losses, passes = self.chain.backward(parameters, features, labels, weights)
            pull()
            for layer_pass in passes:
                layer_pass.add(parameters, layer_pass.slopes, -rate)
            return losses
        losses, gradients = self.gradients(parameters, features, labels, weights)
        pull()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=rate)
        return losses

    def gradients(
        self, parameters: list[Tensor], features: Tree, labels: Tree, weights: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Losses [copies, n], and each copy's ∇ Σ weight·loss [copies, *shape]."""
        if self.chain is not None and isinstance(features, Tensor):
            losses, passes = self.chain.backward(parameters, features, labels, weights)
            slopes = [torch.zeros_like(parameter) for parameter in parameters]
            for layer_pass in passes:
                layer_pass.add(slopes, layer_pass.slopes, 1.0)
            return losses, slopes
        moved = [parameter.detach().requires_grad_() for parameter in parameters]
        outputs = torch.vmap(self.call)(moved, features)
        losses = self.loss(outputs.flatten(0, 1).float(), flattened(labels))
        slopes = list(torch.autograd.grad(losses, moved, weights.flatten(), materialize_grads=True))
        return losses.detach().view(weights.shape), slopes

    def call(self, parameters: list[Tensor], features: Tree) -> Tensor:
        """Outputs of the module with `parameters` in the place of its own, not stacked."""
        values = dict(zip(self._names, parameters, strict=True))
        outputs: Tensor = torch.func.functional_call(self.module, values, (features,))
        return outputs

    @torch.no_grad()
    def fitting(self, record: Tree, steps: int, batch: int) -> int:
        """How many institutions fit into the memory that a chunk may take, at least one; `record` is [1, …]."""
        outputs: list[int] = []
        hooks = [
            layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(getattr(output, "numel", int)()))
            for layer in self.module.modules()
            if not list(layer.children())
        ]
        self.module(record)
        for hook in hooks:
            hook.remove()
        activations = (sum(leaf.numel() for leaf in leaves(record)) + KEPT_OUTPUTS * sum(outputs)) * batch
        each = 4 * (MODEL_COPIES * self.parameters + activations) + 24 * steps * batch
        room = float(CHUNK_BYTES)
        device = leaves(record)[0].device
        if device.type == "cuda":
            room = CHUNK_SHARE * torch.cuda.mem_get_info(device)[0]
        return max(1, int(room / each))


@dataclass(frozen=True)
class LayerPass:
    """A Linear layer's inputs [copies, n, in], and the loss's gradient at its outputs [copies, n, out]."""

    weight: int  # its places among the parameters; a bias of −1: none
    bias: int
    inputs: Tensor
    slopes: Tensor

    def add(self, parameters: Sequence[Tensor], slopes: Tensor, alpha: float) -> None:
        """Add alpha · the layer's gradient, summed over the records, to `parameters`."""
        parameters[self.weight].baddbmm_(slopes.mT, self.inputs, alpha=alpha)
        if self.bias >= 0:
            parameters[self.bias].add_(slopes.sum(1), alpha=alpha)

    def finite(self, which: Tensor) -> LayerPass:
        """With zeros in the place of records that are not in `which` [copies, n]."""
        inputs, slopes = (tensor.where(which.unsqueeze(2), 0.0) for tensor in (self.inputs, self.slopes))
        return replace(self, inputs=inputs, slopes=slopes)


class Chain:
    """Linear layers with elementwise functions in between: batched products, and a pass back that keeps each record."""

    def __init__(self, layers: list[tuple[int, int, list[nn.Module]]], loss: RecordLoss) -> None:
        """`layers`: places of weight and bias, and the functions behind it."""
        self._layers, self._loss = layers, loss
        used = [position for weight, bias, _ in layers for position in (weight, bias) if position >= 0]
        self.untied = len(set(used)) == len(used)

    @classmethod
    def of(cls, module: nn.Module, loss: RecordLoss) -> Chain | None:
        """The chain that `module` is; None if it is anything else."""
        parts = list(module) if type(module) is nn.Sequential else [module]
        if type(parts[0]) is not nn.Linear or not all(
            type(layer) in (nn.Linear, *ELEMENTWISE) and not getattr(layer, "inplace", False) for layer in parts
        ):
            return None
        if not all(parameter.requires_grad for parameter in module.parameters()):
            return None
        places = {id(parameter): position for position, parameter in enumerate(module.parameters())}
        layers: list[tuple[int, int, list[nn.Module]]] = []
        for layer in parts:
            if isinstance(layer, nn.Linear):
                layers.append((places[id(layer.weight)], places.get(id(layer.bias), -1), []))
            else:
                layers[-1][2].append(layer)
        return cls(layers, loss)

    def backward(
        self, parameters: Sequence[Tensor], features: Tensor, labels: Tree, weights: Tensor
    ) -> tuple[Tensor, list[LayerPass]]:
        """Losses [copies, n], and every layer's pass for Σ weight·loss. All are [copies, n, …]."""
        inputs, outputs, after = features, [], []
        passes: list[LayerPass] = []
        for weight, bias, functions in self._layers:
            matrix = parameters[weight].mT
            out = (
                torch.bmm(inputs, matrix) if bias < 0 else torch.baddbmm(parameters[bias].unsqueeze(1), inputs, matrix)
            )
            passes.append(LayerPass(weight, bias, inputs, out))
            activation = out.requires_grad_()
            for function in functions:
                activation = function(activation)
            outputs.append(out)
            after.append(activation)
            inputs = activation.detach()
        losses = self._loss(after[-1].flatten(0, 1), flattened(labels))
        (slopes,) = torch.autograd.grad(losses, outputs[-1], weights.flatten())
        for index in range(len(passes) - 1, -1, -1):
            passes[index] = replace(passes[index], slopes=slopes)
            if index:
                slopes = torch.bmm(slopes, parameters[passes[index].weight])
                if after[index - 1] is not outputs[index - 1]:
                    (slopes,) = torch.autograd.grad(after[index - 1], outputs[index - 1], slopes)
        return losses.detach().view(weights.shape), passes
