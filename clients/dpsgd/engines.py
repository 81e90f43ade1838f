"""Per-record gradients three ways: `torch.func.vmap`, Opacus' hooks, and Opacus' ghost norms.

`vmap` (and `hooks`) keep a gradient for each record; `ghost` finds the norms from activations and takes a second,
weighted backward pass. All take the trainable parameters in the order of `module.parameters()`, read them where
they stand, and leave `.grad` alone. Features [n, …] and labels [n] lie on the module's device.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call, grad, vmap

from sovfed.clients.dpsgd.layers import trainable_layers
from sovfed.federation.errors import PrivacyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from torch.nn import Module, Parameter

    RecordLoss = Callable[[Tensor, Tensor], Tensor]

OPACUS_STATE = ("_current_grad_sample", "_norm_sample")
TINY = torch.finfo(torch.float32).tiny


class VmapEngine:
    """Differentiates each record's loss by itself: nothing of another record can enter. The oracle of the others."""

    def __init__(self, module: Module, loss: RecordLoss) -> None:
        self._values = {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}

        def record_loss(values: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
            logits = functional_call(module, values, (record.unsqueeze(0),))
            return loss(logits, label.unsqueeze(0))[0]

        self._gradients = vmap(grad(record_loss), in_dims=(None, 0, 0), randomness="different")

    def gradients(self, features: Tensor, labels: Tensor) -> list[Tensor]:
        """For each trainable parameter, the gradient of each record's loss, shape [n, size]."""
        found = self._gradients(self._values, features, labels)
        return [found[name].flatten(1) for name in self._values]


class HooksEngine:
    """Opacus' `GradSampleHooks`: one batched pass, each layer's gradients from its input and its output's gradient."""

    def __init__(self, module: Module, loss: RecordLoss) -> None:
        self._module, self._loss = module, loss
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._layers, self._reached = trainable_layers(module), _smallest(module)
        self._hooks = _opacus(ghost=False)(module, loss_reduction="sum")
        self._hooks.disable_hooks()

    def gradients(self, features: Tensor, labels: Tensor) -> list[Tensor]:
        """For each trainable parameter, the gradient of each record's loss, shape [n, size]."""
        _forget(self._layers)
        self._hooks.enable_hooks()
        try:
            with torch.enable_grad():
                losses = self._loss(self._module(features), labels)
                # The hooks need the pass to come by, not its gradients: ask for the smallest of each layer.
                torch.autograd.grad(losses.sum(), self._reached)
            return [_shaped(getattr(one, "grad_sample", None), len(features)) for one in self._parameters]
        finally:
            self._hooks.disable_hooks()
            _forget(self._layers)


class GhostEngine:
    """Opacus' ghost clipping: norms without gradients, then one weighted backward pass (Li et al. 2022, 2110.05679)."""

    def __init__(self, module: Module, loss: RecordLoss) -> None:
        self._module, self._loss = module, loss
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._layers, self._reached = trainable_layers(module), _smallest(module)
        self._hooks = _opacus(ghost=True)(module, loss_reduction="sum")
        self._hooks.disable_hooks()

    def clipped(self, features: Tensor, labels: Tensor, bound: float) -> tuple[list[Tensor], int]:
        """The sum of the records' gradients, each clipped to `bound`, by parameter; and how many were finite."""
        losses, norms = self._norms(features, labels)
        finite = torch.isfinite(norms)
        used = int(finite.sum())
        if used < len(features):  # zero times infinity is not zero: the others go again without them
            return self.clipped(features[finite], labels[finite], bound) if used else (self._zeros(), 0)
        summed = torch.autograd.grad(losses, self._parameters, clip_factors(norms, bound), materialize_grads=True)
        return [one.flatten() for one in summed], used

    def _norms(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        _forget(self._layers)
        self._hooks.enable_hooks()
        try:
            with torch.enable_grad():
                losses = self._loss(self._module(features), labels)
                torch.autograd.grad(losses.sum(), self._reached, retain_graph=True)
            found: list[Tensor] = [one._norm_sample for one in self._parameters if hasattr(one, "_norm_sample")]
            if len(found) < len(self._parameters) or any(norm.shape != (len(features),) for norm in found):
                raise PrivacyError("ghost clipping found no norm for a parameter; use engine vmap")
            return losses, torch.linalg.vector_norm(torch.stack(found), dim=0)
        finally:
            self._hooks.disable_hooks()
            _forget(self._layers)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros(one.numel(), dtype=one.dtype, device=one.device) for one in self._parameters]


Engine = VmapEngine | HooksEngine | GhostEngine


def build_engine(name: str, module: Module, loss: RecordLoss) -> Engine:
    """The engine called `name`, one of `layers.ENGINES`."""
    engines: dict[str, Callable[[Module, RecordLoss], Engine]]
    engines = {"vmap": VmapEngine, "hooks": HooksEngine, "ghost": GhostEngine}
    return engines[name](module, loss)


def one_by_one(module: Module, loss: RecordLoss, features: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Each record's gradient over the trainable parameters, shape [d'], by plain autograd on a batch of one."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for place in range(len(features)):
        record = slice(place, place + 1)
        losses = loss(module(features[record]), labels[record])
        parts = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
        yield torch.cat([part.flatten() for part in parts])


def clip_factors(norms: Tensor, bound: float) -> Tensor:
    """min(1, bound / norm) of each, shape [n]; `norms` are finite."""
    return (bound / norms.clamp_min(TINY)).clamp_max(1.0)


def _smallest(module: Module) -> list[Parameter]:
    """The smallest trainable parameter of each layer, each once: a backward pass to them comes by every layer."""
    each = [
        min((one for one in layer.parameters(recurse=False) if one.requires_grad), key=lambda one: one.numel())
        for layer in trainable_layers(module)
    ]
    return list(dict.fromkeys(each))


def _shaped(gradients: Tensor | None, count: int) -> Tensor:
    if gradients is None or len(gradients) != count:
        raise PrivacyError("Opacus' hooks found no gradient for a parameter; use engine vmap")
    return gradients.flatten(1)


def _forget(layers: Sequence[Module]) -> None:
    """Drop what Opacus keeps on layers and parameters, so that a step that broke off leaves nothing to the next."""
    for layer in layers:
        for attribute in ("activations", "max_batch_len"):
            if hasattr(layer, attribute):
                delattr(layer, attribute)
        for parameter in layer.parameters(recurse=False):
            state: Any = parameter
            state.grad_sample, state._forward_counter = None, 0
            for attribute in OPACUS_STATE:
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)


def _opacus(*, ghost: bool) -> Any:
    """Opacus' class for hooks, imported without the handler that its import puts on the root logger.

    torch warns of hooks on a module whose inputs need no gradient, as is the rule for records.
    """
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping

    root.handlers[:], root.level = handlers, level
    return GradSampleHooksFastGradientClipping if ghost else GradSampleHooks
