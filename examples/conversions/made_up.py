"""Data from a seed, in the place of a user's own: nothing is downloaded, and everybody has the same."""

from __future__ import annotations

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]  # inputs and labels
HELD_OUT = 0.5


def measurements(features: int, classes: int, *, count: int = 800, seed: int = 1) -> Part:
    """Normal numbers [n, features] and the class [n] that a hidden linear rule gives them, blurred a little."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator)
    rule = torch.randn(features, classes, generator=generator)
    blur = 0.3 * torch.randn(count, classes, generator=generator)
    return x, (x @ rule + blur).argmax(1)


def images(classes: int, *, count: int = 800, seed: int = 1) -> Part:
    """Pictures [n, 3, 32, 32] of values 0 to 1, of each class [n] another blurred pattern under noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(classes, 3, 8, 8, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    labels = torch.randint(0, classes, (count,), generator=generator)
    noise = torch.randn(count, 3, 32, 32, generator=generator)
    return (patterns[labels] + 0.5 * noise).clamp(0, 1), labels


def cut(data: Part, part: int = 0, parts: int = 1) -> tuple[Part, Part]:
    """Every `parts`-th record from `part` on, as (training part, held-out part)."""
    x, y = data
    held_out = round(len(x) * (1 - HELD_OUT))
    train, test = slice(part, held_out, parts), slice(held_out + part, None, parts)
    return (x[train], y[train]), (x[test], y[test])


def accuracy(model: torch.nn.Module, data: Part) -> float:
    """Share of `data` that `model` puts into the right class."""
    model.eval()
    with torch.no_grad():
        return float((model(data[0]).argmax(1) == data[1]).float().mean())
