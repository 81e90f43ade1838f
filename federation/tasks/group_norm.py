"""BatchNorm made GroupNorm, `task.normalisation=group`: BatchNorm mixes the records of a batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Callable

OVERRIDE = "task.normalisation=group"


def replace_batchnorm(module: nn.Module) -> nn.Module:
    """`module` with every BatchNorm made a GroupNorm in place (a new root if it is one itself).

    gcd(32, channels) groups as Opacus' ModuleValidator.fix, which leaves those without parameters and uses pickle.
    BatchNorm1d becomes one group: on [n, channels] groups of single values would all be normalised to zero. Weight
    and bias are kept in their places; running statistics are dropped.
    """
    if isinstance(module, _BatchNorm):
        return _group_norm(module)
    for name, child in module.named_children():
        setattr(module, name, replace_batchnorm(child))
    return module


def batchnorms(module: nn.Module) -> list[str]:
    """The names of the BatchNorm layers of `module`."""
    return [name or type(layer).__name__ for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]


def grouped(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Makes what `build` makes, with GroupNorm; the very same function if that has no BatchNorm."""
    if not batchnorms(build()):
        return build
    return lambda: replace_batchnorm(build())


def _group_norm(norm: _BatchNorm) -> nn.GroupNorm:
    groups = 1 if isinstance(norm, nn.BatchNorm1d) else math.gcd(32, norm.num_features)
    replacement = nn.GroupNorm(groups, norm.num_features, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        replacement.weight, replacement.bias = norm.weight, norm.bias
    return replacement.train(norm.training)
