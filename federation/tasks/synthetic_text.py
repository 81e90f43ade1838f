"""Made-up sequences of 64 tokens and a small transformer that tells the next one: measures compute-bound training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Column, Schema, target
from sovfed.federation.tasks.losses import cross_entropy

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

TOKENS: Final = 32
LENGTH: Final = 64
WIDTH: Final = 128
HEADS: Final = 4
LAYERS: Final = 2


def build() -> Module:
    """A decoder with pre-normalisation (Radford et al. 2019), two layers of width 128."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.mixed, self.joined = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            split = self.mixed(self.before(x)).reshape(*x.shape[:-1], 3, HEADS, WIDTH // HEADS)
            query, key, value = (split[:, :, place].transpose(1, 2) for place in range(3))
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.joined(seen.transpose(1, 2).reshape(x.shape))
            found: Tensor = x + self.narrow(functional.gelu(self.wide(self.after(x))))
            return found

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.place = nn.Embedding(TOKENS, WIDTH), nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS)

        def forward(self, tokens: Tensor) -> Tensor:
            hidden = self.blocks(self.token(tokens) + self.place)
            found: Tensor = self.head(self.last(hidden[:, -1]))
            return found

    return Decoder()


TASK = Task(
    name="synthetic_text",
    title="Made-up sequences of 64 tokens",
    schema=Schema(
        columns=(
            Column("token", "tokens", low=0.0, high=TOKENS - 1.0, shape=(LENGTH,)),
            target("next", *map(str, range(TOKENS))),
        ),
    ),
    metrics=ClassMetrics(classes=TOKENS),
    headline="accuracy",
    simulated_split=True,
    licence="Apache-2.0",
    citation="made from a seed by clients/data/synthetic.py",
    build=build,
    loss=cross_entropy,
)
