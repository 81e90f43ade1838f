"""A small causal transformer over bytes, whose layers treat every record by itself: no dropout, no batch statistics."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

BYTES: Final = 256
WIDTH: Final = 64
EMBEDDED: Final = 32  # numbers that stand for a byte
NEAR: Final = 8  # bytes that the first layer sees at once
HEADS: Final = 4
BLOCKS: Final = 2


class Attention(nn.Module):
    """Causal self-attention; how far a byte lies back is a penalty on its score (Press et al. 2022, ALiBi)."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        query, key, value = self.all(x).view(count, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5 + _penalties(length, x)
        attended: Tensor = self.out((scores.softmax(-1) @ value).transpose(1, 2).reshape(count, length, WIDTH))
        return attended


class Block(nn.Module):
    """Attention, then a perceptron, each added to what it was given, normalised (Xiong et al. 2020, pre-LN)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.between = nn.LayerNorm(WIDTH)
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        output: Tensor = x + self.perceptron(self.between(x))
        return output


class ByteGPT(nn.Module):
    """Windows of bytes [n, t + 1] → log p [n, t] (in nats) of each byte but the first, given those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, EMBEDDED)
        self.near = nn.Conv1d(EMBEDDED, WIDTH, NEAR)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, BYTES)

    def forward(self, windows: Tensor) -> Tensor:
        codes = windows.long()
        scores = self.scores(codes[:, :-1]).log_softmax(-1)
        return scores.gather(-1, codes[:, 1:, None]).squeeze(-1)

    def scores(self, codes: Tensor) -> Tensor:
        """Of each byte to come next, after each of `codes` [n, t]: shape [n, t, 256]."""
        embedded = functional.pad(self.embedding(codes).transpose(1, 2), (NEAR - 1, 0))
        logits: Tensor = self.head(self.norm(self.blocks(self.near(embedded).transpose(1, 2))))
        return logits


def _penalties(length: int, like: Tensor) -> Tensor:
    """−slope · distance for each head, −∞ for what is still to come; shape [heads, t, t]."""
    position = torch.arange(length, device=like.device, dtype=like.dtype)
    distance = position[:, None] - position
    slopes = 4.0 ** -torch.arange(1, HEADS + 1, device=like.device, dtype=like.dtype)
    return (-slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
