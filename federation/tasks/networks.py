"""The networks of the model families. Every layer treats a record by itself: no batch statistics."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sovfed.federation.tasks.columns import PACKED

if TYPE_CHECKING:
    from collections.abc import Sequence

SYMBOLS: Final = 257  # the bytes, each plus one, and 0 behind the text's end
GROUPS: Final = 8
LARGE: Final = 64  # pixels of a side from which on an image is first made smaller
NOWHERE: Final = -1e9  # a score that attention gives no weight to


def norm_of(kind: str, width: int) -> nn.Module:
    return nn.LayerNorm(width) if kind == "layer" else nn.Identity()


def mlp(width: int, hidden: Sequence[int], outputs: int, dropout: float, norm: str) -> nn.Module:
    """[n, width] → [n, outputs] through layers of `hidden` values."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), norm_of(norm, size), nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*(layer for layer in layers if not _idle(layer)), nn.Linear(width, outputs))


def _idle(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and layer.p == 0)


class ResidualBlock(nn.Module):
    """x + dropout(linear(dropout(ReLU(linear(norm(x)))))): [n, width] → [n, width]."""

    def __init__(self, width: int, hidden: int, dropout: float, norm: str) -> None:
        super().__init__()
        layers = [
            norm_of(norm, width), nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width),
            nn.Dropout(dropout),
        ]  # fmt: skip
        self.inner = nn.Sequential(*(layer for layer in layers if not _idle(layer)))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.inner(x)
        return x + changed


def tabular_resnet(
    width: int, size: int, hidden: int, blocks: int, outputs: int, dropout: float, norm: str
) -> nn.Module:
    """The ResNet for tables: [n, width] → [n, outputs].

    Source: Gorishniy et al. 2021, arXiv:2106.11959, section 3.2, whose BatchNorm is LayerNorm here.
    """
    body = [ResidualBlock(size, hidden, dropout, norm) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(width, size), *body, norm_of(norm, size), nn.ReLU(), nn.Linear(size, outputs))


def group_norm(channels: int) -> nn.GroupNorm:
    """At most 8 groups, of at least 4 channels each where there are so many."""
    return nn.GroupNorm(math.gcd(channels, max(1, min(GROUPS, channels // 4))), channels)


class Mean(nn.Module):
    """The mean of each channel over the image: [n, channels, height, width] → [n, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def cnn(channels: int, widths: Sequence[int]) -> nn.Module:
    """A convolution with GroupNorm for each of `widths`, each halving the image: [n, c, h, w] → [n, last width]."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), group_norm(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, Mean())


class ImageBlock(nn.Module):
    """Two convolutions and a way around them (He et al. 2016, pre-activation), with GroupNorm."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(group_norm(channels), nn.ReLU())
        self.inner = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False), group_norm(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )  # fmt: skip
        straight = stride == 1 and channels == width
        self.around = nn.Identity() if straight else nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.first(x)
        around = x if isinstance(self.around, nn.Identity) else self.around(active)
        changed: Tensor = self.inner(active)
        return around + changed


def resnet(channels: int, side: int, widths: Sequence[int], blocks: int) -> nn.Module:
    """A residual network with GroupNorm, `blocks` for each of `widths`: [n, c, h, w] → [n, last width]."""
    layers: list[nn.Module]
    if side >= LARGE:
        layers = [nn.Conv2d(channels, widths[0], 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, 2, 1)]
    else:
        layers = [nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)]
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(ImageBlock(before, width, 2 if stage and not block else 1))
            before = width
    return nn.Sequential(*layers, group_norm(before), nn.ReLU(), Mean())


class Attention(nn.Module):
    """Self-attention over the places that `there` [n, t] names: [n, t, width] → the same (Vaswani et al. 2017)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.all, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        count, length, width = x.shape
        parts = self.all(x).reshape(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = query @ key.transpose(-2, -1) * (width // self.heads) ** -0.5
        weights = scores.masked_fill(~there[:, None, None, :], NOWHERE).softmax(-1)
        mixed: Tensor = self.out((weights @ value).transpose(1, 2).reshape(count, length, width))
        return mixed


class TextBlock(nn.Module):
    """Attention, then a perceptron, each added to what it was given, normalised (Xiong et al. 2020, pre-LN)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.before, self.attention, self.between = nn.LayerNorm(width), Attention(width, heads), nn.LayerNorm(width)
        perceptron = [nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)]
        self.perceptron = nn.Sequential(*(layer for layer in perceptron if not _idle(layer)))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        x = x + self.attention(self.before(x), there)
        changed: Tensor = self.perceptron(self.between(x))
        return x + changed


class TextBody(nn.Module):
    """A transformer over the bytes of a text: codes [n, length], 0 behind the end → [n, width]."""

    def __init__(self, length: int, width: int, blocks: int, heads: int, patch: int, dropout: float) -> None:
        super().__init__()
        self.patch, self.places = patch, -(-length // patch)
        self.embedding = nn.Embedding(SYMBOLS, width)
        self.near = nn.Conv1d(width, width, patch, stride=patch)  # `patch` bytes become one place
        self.position = nn.Parameter(0.02 * torch.randn(self.places, width))
        self.blocks = nn.ModuleList(TextBlock(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, codes: Tensor) -> Tensor:
        padded = functional.pad(codes.long(), (0, self.places * self.patch - codes.shape[1]))
        present = (padded > 0).reshape(len(codes), self.places, self.patch).any(2)
        x = self.near(self.embedding(padded).transpose(1, 2)).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x, present)
        weights = present[:, :, None].to(x.dtype)
        mean: Tensor = (self.norm(x) * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        return mean


class Joined(nn.Module):
    """What `body` makes of the input `name`, beside the numbers and categories, to outputs [n, outputs]."""

    def __init__(self, body: nn.Module, name: str, features: int, width: int, outputs: int) -> None:
        super().__init__()
        self.body, self.head, self._name = body, nn.Linear(features + width, outputs), name

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor:
        if isinstance(inputs, Tensor):
            features = self.body(inputs)
        else:
            features = torch.cat([self.body(inputs[self._name]), inputs[PACKED]], 1)
        outputs: Tensor = self.head(features)
        return outputs
