"""A causal transformer over tokens, whose layers treat every record by itself: no dropout, no batch statistics.

Rotary positions (Su et al. 2021, arXiv:2104.09864), RMSNorm without a gain before each part and on queries and keys
(Dehghani et al. 2023, arXiv:2302.05442), ReLU² (So et al. 2021, arXiv:2109.08668) or SwiGLU (Shazeer 2020,
arXiv:2002.05202). What is added to the stream, and the head, begin at zero, so every token is as likely at first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sovfed.federation.tasks.goldfish import weights

if TYPE_CHECKING:
    from collections.abc import Callable

ROTARY_BASE: Final = 10_000.0
SCORES_AT_ONCE: Final = 1 << 24  # of a vocabulary, kept for the gradient; beyond, computed twice in pieces


class Head(nn.Linear):
    """Scores of a vocabulary's tokens; Muon at the server takes it for no matrix (`Layout.vocabulary`)."""

    over_vocabulary = True


class Rotary(nn.Module):
    """Turns pairs of values of [n, heads, t, size] by angles that grow with the place, up to `places`."""

    def __init__(self, size: int, places: int) -> None:
        super().__init__()
        frequencies = ROTARY_BASE ** -(torch.arange(0, size, 2) / size)
        angles = torch.arange(places)[:, None] * frequencies
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        cosine, sine = cast("Tensor", self.cosine)[:length], cast("Tensor", self.sine)[:length]
        first, second = x.chunk(2, -1)
        return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1).to(x.dtype)


class Attention(nn.Module):
    """Each place attends to itself and those before it: [n, t, width] → the same."""

    def __init__(self, width: int, heads: int, places: int) -> None:
        super().__init__()
        self.heads, self.rotary = heads, Rotary(width // heads, places)
        # a matrix each: Muon makes the step of each orthogonal by itself
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = _from_zero(nn.Linear(width, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._by_head(layer(x)) for layer in (self.query, self.key, self.value))
        query, key = self.rotary(normalised(query)), self.rotary(normalised(key))
        mixed = attended(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        return x.view(count, length, self.heads, width // self.heads).transpose(1, 2)


class Perceptron(nn.Module):
    """Two layers of which the inner one is `hidden` wide: [n, t, width] → the same."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.gate = nn.Linear(width, hidden, bias=False) if activation == "swiglu" else None
        self.down = _from_zero(nn.Linear(hidden, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        up: Tensor = self.up(x)
        active = functional.relu(up).square() if self.gate is None else functional.silu(self.gate(x)) * up
        down: Tensor = self.down(active)
        return down


class Block(nn.Module):
    """Attention, then a perceptron, each added to what it was given, normalised."""

    def __init__(self, width: int, heads: int, hidden: int, places: int, activation: str) -> None:
        super().__init__()
        self.attention = Attention(width, heads, places)
        self.perceptron = Perceptron(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(normalised(x))
        changed: Tensor = self.perceptron(normalised(x))
        return x + changed


class Decoder(nn.Module):
    """Windows of tokens [n, t + 1] → log p [n, t] (in nats) of each token but the first, given those before it."""

    def __init__(
        self, symbols: int, context: int, width: int, blocks: int, heads: int, hidden: int, activation: str = "relu2",
        *, tied: bool = False, recompute: bool = False, goldfish: int = 0,
    ) -> None:  # fmt: skip
        """`context` is the most tokens that it sees, `tied`: one matrix embeds tokens and scores them.

        `recompute` keeps the inputs of blocks alone for the gradient and computes the rest again: less memory, a third
        more time. `goldfish`: in training one token in so many counts nothing (`goldfish.weights`); 0: all count.
        """
        super().__init__()
        self.context, self.recompute, self.goldfish = context, recompute, goldfish
        self.embedding = nn.Embedding(symbols, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, context, activation) for _ in range(blocks))
        self.head = Head(width, symbols, bias=False)
        if tied:
            self.head.weight = self.embedding.weight
        else:
            _from_zero(self.head)

    def forward(self, windows: Tensor) -> Tensor:
        codes = windows.long()
        hidden = self.hidden(codes[:, :-1])
        told = self._told(hidden, codes[:, 1:])
        return told * weights(codes, self.goldfish) if self.training and self.goldfish else told

    def hidden(self, codes: Tensor) -> Tensor:
        """What the last block makes of `codes` [n, t], normalised: [n, t, width]."""
        x = normalised(self.embedding(codes))
        for block in self.blocks:
            x = self._again(block, x) if self.recompute and torch.is_grad_enabled() else block(x)
        return normalised(x)

    def scores(self, codes: Tensor) -> Tensor:
        """Of each token to come next behind the last of `codes` [n, t]: shape [n, symbols]."""
        scores: Tensor = self.head(self.hidden(codes)[:, -1])
        return scores

    def _told(self, hidden: Tensor, following: Tensor) -> Tensor:
        """log p of `following` [n, t]; of a large vocabulary never all scores at once."""
        flat, tokens = hidden.flatten(0, 1), following.flatten()
        rows = max(1, SCORES_AT_ONCE // self.head.out_features)
        if len(flat) <= rows:
            return self._log_p(flat, tokens).view_as(following)
        pieces = zip(torch.split(flat, rows), torch.split(tokens, rows), strict=True)
        return torch.cat([self._again(self._log_p, *piece) for piece in pieces]).view_as(following)

    def _log_p(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return -functional.cross_entropy(self.head(hidden).float(), tokens, reduction="none")

    @staticmethod
    def _again(call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`call`, of which nothing but the inputs is kept for the gradient."""
        result: Tensor = checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False)
        return result


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of [n, heads, t, size]; by matrices for the gradients of single records (vmap)."""
    if not torch._C._functorch.is_functorch_wrapped_tensor(query):
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    length = query.shape[-2]
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores: Tensor = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.masked_fill(later, float("-inf")).softmax(-1) @ value


def normalised(x: Tensor) -> Tensor:
    """`x` with a mean square of 1 along the last dimension."""
    return functional.rms_norm(x, (x.shape[-1],))


def _from_zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    return layer
