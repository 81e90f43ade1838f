"""What a model's layers do in a forward pass, which gradient engine is right for them, and which one is fastest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from sovfed.federation.tasks.trees import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from sovfed.federation.tasks.trees import Tree

ENGINES: Final = ("vmap", "ghost", "hooks")


@dataclass(frozen=True, eq=False)
class Layer:
    """A module that holds trainable parameters itself, as one forward pass used it."""

    name: str
    module: nn.Module
    calls: int
    plain: bool  # every call: one positional tensor in, one tensor out, records in the first dimension of both
    rank: int  # dimensions of its input


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward pass: its layers, and the bytes that autograd keeps for each record."""

    layers: tuple[Layer, ...]
    record_bytes: int
    tied: tuple[str, ...]  # names of parameters that are another name's parameter


def trace(module: nn.Module, features: Tree) -> Trace:
    """Watch one forward pass of `module` over `features` [n, …]; n should be no other dimension of the model."""
    calls: Counter[str] = Counter()
    plain: dict[str, bool] = {}
    rank: dict[str, int] = {}
    count = size(features)
    own = {id(parameter) for parameter in module.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls[name] += 1
            plain[name] = plain.get(name, True) and not kwargs and len(args) == 1 and _by_record((args[0], output))
            rank[name] = args[0].dim() if args and isinstance(args[0], torch.Tensor) else 0

        def _by_record(values: tuple[Any, ...]) -> bool:
            return all(isinstance(value, torch.Tensor) and value.shape[:1] == (count,) for value in values)

        return hook

    holders = [(name, submodule) for name, submodule in module.named_modules() if _trainable(submodule)]
    handles = [submodule.register_forward_hook(watch(name), with_kwargs=True) for name, submodule in holders]
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module(features)
    finally:
        for handle in handles:
            handle.remove()
    layers = tuple(
        Layer(name or type(submodule).__name__, submodule, calls[name], plain.get(name, True), rank.get(name, 0))
        for name, submodule in holders
    )
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    tied = tuple(name for name, parameter in every if first[id(parameter)] != name)
    return Trace(layers, sum(saved.values()) // max(1, count), tied)


def refusals(engine: str, traced: Trace, *, several_records: bool) -> list[str]:
    """Why `engine` would be wrong for the traced model; empty if nothing speaks against it.

    vmap differentiates each record by itself and is right wherever it runs. Opacus' hooks (1.6) compute from a layer's
    input and output, with a rule of its own for each type: only those that are exact are let through. Ghost norms are
    for Linear layers that see a record once.
    """
    if engine == "vmap":
        return []
    reasons = [f"{layer.name}: {why}" for layer in traced.layers if (why := _inexact(layer))]
    if engine == "ghost":
        if several_records:
            reasons.append("persons may have several records, and a norm of a person's gradient needs the gradient")
        reasons += [f"{name}: tied weights, whose norm is not the sum of their uses' norms" for name in traced.tied]
        for layer in traced.layers:
            if layer.calls > 1:
                reasons.append(f"{layer.name}: used {layer.calls} times, and norms of uses do not add up")
            if type(layer.module) is not nn.Linear:
                reasons.append(f"{layer.name}: no ghost norm for {type(layer.module).__name__}")
            elif layer.calls and layer.rank != 2:
                reasons.append(f"{layer.name}: Linear over a sequence, whose ghost norm loses digits by cancellation")
    return reasons


def choose(traced: Trace, *, several_records: bool) -> tuple[str, str]:
    """The engine for the traced model, and why. Deterministic: the same model gets the same engine everywhere."""
    against = refusals("ghost", traced, several_records=several_records)
    if against:
        return "vmap", f"ghost clipping would be wrong ({against[0]})"
    return "ghost", "all parameters are in Linear layers, each applied once to a record"


def _inexact(layer: Layer) -> str:
    module = layer.module
    if not layer.plain:
        return "not called with one positional tensor whose first dimension is the record"
    if type(module) in (nn.Linear, nn.GroupNorm):
        return ""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and type(module).__module__ == "torch.nn.modules.conv":
        return "" if module.padding_mode == "zeros" else f"padding_mode '{module.padding_mode}' is taken for zeros"
    if type(module) is nn.LayerNorm:
        return "LayerNorm without bias fails" if module.bias is None else ""
    if type(module) is nn.Embedding:
        special = module.padding_idx is not None or module.max_norm is not None or module.scale_grad_by_freq
        return "padding_idx, max_norm and scale_grad_by_freq give wrong gradients" if special or module.sparse else ""
    return f"no exact rule for {type(module).__name__}"


def _trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def trainable_layers(module: nn.Module) -> Sequence[nn.Module]:
    """The modules that hold trainable parameters themselves."""
    return [submodule for submodule in module.modules() if _trainable(submodule)]
