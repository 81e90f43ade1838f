"""Which tensors of a model travel, and where each stands in the flat vector.

First the parameters that are trained, in torch's order, then the running statistics: those floating-point buffers that
a forward pass in training mode changes, which an average of models needs as much as its weights. Everything else is
built at each place by the same code: frozen parameters, constant buffers, counters.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.trees import mapped
from sovfed.federation.vectors import MAX_PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor

    from sovfed.federation.plan import LocalPlan
    from sovfed.federation.tasks.trees import Tree
    from sovfed.federation.vectors import Vector

SAMPLE: Final = 5  # made-up records: a number that is seldom another dimension of a model
INNER: Final = "inner."
_NORMS: Final = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Applied(nn.Module):
    """A module with the way to call it: a tree of inputs in, one tensor of outputs [n, …] out."""

    def __init__(self, module: nn.Module, predict: Callable[[nn.Module, Tree], object]) -> None:
        super().__init__()
        self.inner, self._predicted = module, partial(predict, module)
        self._dtype = floats(module)

    def forward(self, inputs: Tree) -> Tensor:
        if self._dtype != torch.float32:
            inputs = mapped(lambda part: part.to(self._dtype) if part.is_floating_point() else part, inputs)
        return outputs_of(self._predicted(inputs))


def floats(module: nn.Module) -> torch.dtype:
    """The type of its first floating-point parameter: that of the numbers it takes."""
    return next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), torch.float32)


def call(module: nn.Module, inputs: Tree) -> object:
    """The module with its one input, or with all of them by name."""
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def way_to_call(module: nn.Module, names: Collection[str]) -> Callable[[nn.Module, Tree], object]:
    """How to give `module` the inputs `names`: each by its name, or all of them as one dict if it takes one thing."""
    parameters = inspect.signature(module.forward).parameters.values()
    takes = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    needed = [each for each in parameters if each.name in takes and each.default is each.empty]
    by_name = any(each.kind is each.VAR_KEYWORD for each in parameters) or takes.issuperset(names)
    return call if by_name or len(needed) != 1 else whole


def whole(module: nn.Module, inputs: Tree) -> object:
    """The module with all its inputs as one tree."""
    return module(inputs)


def outputs_of(found: object) -> Tensor:
    """The tensor in what a model returned: `logits` of a mapping or an object, the first of a tuple. ConfigError."""
    if isinstance(found, torch.Tensor):
        return found
    if isinstance(found, dict):
        found = found["logits"] if "logits" in found else next(iter(found.values()), None)
    elif hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, torch.Tensor):
        raise ConfigError(f"the model returns {type(found).__name__}; give the task a `predict` that returns a tensor")
    return found


@dataclass(frozen=True)
class Part:
    """A tensor that travels: its name in the module's state dict, and its place in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    trained: bool

    @property
    def place(self) -> slice:
        return slice(self.start, self.start + math.prod(self.shape))


@dataclass(frozen=True)
class Layout:
    """The tensors of a task's model that travel."""

    parts: tuple[Part, ...]
    normalised: frozenset[str]  # those of normalisation layers
    coupled: bool  # in training, a record's output depends on the batch (BatchNorm): it cannot be alone
    frozen: str = ""  # SHA-256 of the parameters that stay what they are: weights that both sides must hold
    vocabulary: frozenset[str] = frozenset()  # those with a row a token, as of embeddings: no matrices to Muon
    personal: frozenset[str] = frozenset()  # those that stay at each institution: their update is zeros on the wire

    @cached_property
    def size(self) -> int:
        """Length d of the flat vector."""
        return self.parts[-1].place.stop if self.parts else 0

    @cached_property
    def trained(self) -> int:
        """How many values are trained; running statistics come behind them."""
        return max((block.place.stop for block in self.parts if block.trained), default=0)

    @cached_property
    def normalisation(self) -> npt.NDArray[np.bool_]:
        """Which places belong to normalisation layers, shape [d]."""
        return self.places(self.normalised)

    def places(self, names: frozenset[str]) -> npt.NDArray[np.bool_]:
        """Which places belong to the tensors of these names, shape [d]."""
        mask = np.zeros(self.size, bool)
        for block in self.parts:
            mask[block.place] = block.name in names
        return mask

    def sent(self, update: Vector, model: Vector, units: LocalPlan | None = None) -> Vector:
        """`update` (shape [d]) as it travels: trained tensors in multiples of how far `units` lets them move.

        Running statistics travel in multiples of how far they may, cut to ±1: a variance of thousands would be cut to
        the clip that is meant for weights' updates, or shrink them with it.
        """
        factors = [] if units is None else [(block.place, 1.0 / units.reach(block.shape)) for block in self._trained]
        return self._rescaled(update, factors, lambda part: np.clip(part / self._reach(model), -1.0, 1.0))

    def received(self, update: Vector, model: Vector, units: LocalPlan | None = None) -> Vector:
        """The inverse of `sent`, of a mean as well: `model` is public."""
        factors = [] if units is None else [(block.place, units.reach(block.shape)) for block in self._trained]
        return self._rescaled(update, factors, lambda part: part * self._reach(model))

    @property
    def _trained(self) -> Iterator[Part]:
        return (block for block in self.parts if block.trained)

    def _reach(self, model: Vector) -> Vector:
        """How far each running statistic may move in a round: it may become nine times what it is."""
        reach: Vector = np.float32(8.0) * np.maximum(np.float32(1.0), np.abs(model[self.trained :]))
        return reach

    def _rescaled(
        self, update: Vector, factors: Sequence[tuple[slice, float]], change: Callable[[Vector], Vector]
    ) -> Vector:
        if self.trained == self.size and not factors:
            return update
        changed = update.copy()
        for place, factor in factors:
            changed[place] *= np.float32(factor)
        changed[self.trained : self.size] = change(update[self.trained : self.size])
        return changed

    def tensors(self, module: nn.Module) -> list[Tensor]:
        """The tensors of `module`, a model of the same task."""
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        prefix = INNER if isinstance(module, Applied) else ""
        return [state[prefix + block.name] for block in self.parts]

    def vector(self, module: nn.Module) -> Vector:
        """The flat vector of `module`."""
        flat = [tensor.detach().reshape(-1).float().cpu() for tensor in self.tensors(module)]
        vector: Vector = (torch.cat(flat) if flat else torch.zeros(0)).numpy()
        return vector


def lay_out(
    module: nn.Module,
    inputs: Tree,
    trained: Callable[[str], bool] | None,
    personal: Callable[[str], bool] | None = None,
) -> Layout:
    """The layout of `module`, tried on made-up `inputs`; the module is changed by it.

    `trained` chooses among the parameters that require gradients, all unless given, and `personal` those of what is
    trained, and of running statistics, that stay at each institution. Raises ConfigError.
    """
    named = _named(module.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(parameter.requires_grad and (trained is None or trained(name)))
    buffers = {name: buffer for name, buffer in _named(module.named_buffers()).items() if buffer.is_floating_point()}
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    module.train()
    with torch.no_grad():
        module(inputs)
    changed = _changed(buffers, before, _named(module.named_buffers()))
    parts: list[Part] = []
    for name, tensor in (named | buffers).items():
        training = name in named
        if (training and not tensor.requires_grad) or (not training and name not in changed):
            continue
        if not tensor.is_floating_point():
            raise ConfigError(f"parameter '{name}' is {tensor.dtype}, expected floating point")
        parts.append(Part(name, tuple(tensor.shape), parts[-1].place.stop if parts else 0, training))
    if not any(block.trained for block in parts):
        raise ConfigError("the model has no parameter that is trained")
    if parts[-1].place.stop > MAX_PARAMETERS:
        raise ConfigError(f"the model has {parts[-1].place.stop} values to send, at most {MAX_PARAMETERS} travel")
    normalised = {
        name
        for prefix, submodule in _modules(module)
        if isinstance(submodule, _NORMS)
        for name in (prefix + inner for inner, _ in (*submodule.named_parameters(), *submodule.named_buffers()))
    }
    vocabulary = {
        prefix + inner
        for prefix, submodule in _modules(module)
        if isinstance(submodule, nn.Embedding) or getattr(submodule, "over_vocabulary", False)
        for inner, _ in submodule.named_parameters(recurse=False)
    }
    coupled = any(isinstance(submodule, _NormBase) for submodule in module.modules())
    stay = frozenset(block.name for block in parts if personal is not None and personal(block.name))
    if personal is not None and not stay:
        raise ConfigError(
            f"`personal` names none of the trained parameters: {', '.join(block.name for block in parts[:8])}"
        )
    if len(stay) == len(parts):
        raise ConfigError("`personal` names every parameter that is trained, so there is nothing to learn together")
    return Layout(
        tuple(parts), frozenset(normalised), coupled, _digest_of_frozen(named), frozenset(vocabulary), stay
    )  # fmt: skip


def _changed(buffers: dict[str, Tensor], before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The names of the buffers that a pass changed. Raises ConfigError if it put another tensor in the place of one.

    That one could not be seen by who holds the first. A cache that was made longer, or made anew of equal values, is no
    statistic.
    """
    changed = set()
    for name, buffer in buffers.items():
        now = after.get(name, buffer)
        if now.shape != buffer.shape or torch.allclose(now, before[name], rtol=0.0, atol=0.0, equal_nan=True):
            continue
        if now is not buffer:
            raise ConfigError(f"buffer '{name}' is replaced in each pass; change it in place, as with copy_")
        changed.add(name)
    return changed


def _digest_of_frozen(named: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes of the parameters that are not trained; "" if there are none."""
    frozen = {name: tensor for name, tensor in sorted(named.items()) if not tensor.requires_grad}
    hasher = hashlib.sha256()
    for name, tensor in frozen.items():
        flat = tensor.detach().reshape(-1).contiguous().cpu()
        hasher.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        hasher.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return hasher.hexdigest() if frozen else ""


def _modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"{name}.".removeprefix(INNER).removeprefix("."), submodule) for name, submodule in module.named_modules()]


def _named(named: object) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {name.removeprefix(INNER): tensor for name, tensor in named}  # type: ignore[attr-defined]
    return tensors
