"""Text from a language model, a token after the other; and how likely a text is to it."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from sovfed.federation.models.saved import LoadedModel
    from sovfed.federation.tasks.tokenizer import Tokenizer

TOGETHER: Final = 256  # texts that are scored at once
COLDEST: Final = 1e-4  # temperature up to which the likeliest token is taken


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn: from the likeliest ones that together have probability `top_p`, equally for equal seeds."""

    tokens: int = 200
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


@runtime_checkable
class Writer(Protocol):
    """A model of the next token, given the last `context` ones."""

    context: int

    def __call__(self, windows: Tensor) -> Tensor: ...

    def eval(self) -> Self: ...

    def scores(self, codes: Tensor) -> Tensor:
        """Of each token that may follow `codes` [n, t]: shape [n, symbols]."""
        ...


def continued(model: LoadedModel, tokenizer: Tokenizer, prompt: str, drawing: Drawing) -> Iterator[str]:
    """What follows `prompt`, in pieces of whole characters, until a document ends. Raises ConfigError."""
    if not isinstance(model.module, Writer):
        raise ConfigError(
            f"the model of task '{model.task.name}' is no language model of a task.yaml, which alone write here; its "
            "package's own code knows how it writes"
        )
    if model.task.tokenizer != tokenizer.sha256:
        raise ConfigError(f"task '{model.task.name}' is no language model of the tokenizer {tokenizer.sha256[:16]}…")
    return written(model.module, tokenizer, prompt, drawing)


def written(module: Writer, tokenizer: Tokenizer, prompt: str, drawing: Drawing) -> Iterator[str]:
    """As `continued`, by a module alone."""
    text = codecs.getincrementaldecoder("utf-8")("replace")
    for token in _tokens(module.eval(), [tokenizer.document, *tokenizer.encode([prompt])[0]], drawing):
        if piece := text.decode(tokenizer.pieces[token]):
            yield piece


@torch.no_grad()
def log_p(module: Writer, tokenizer: Tokenizer, texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """log p in nats of each text as the beginning of a document [n]. Raises ConfigError if one is too long to see."""
    codes = tokenizer.encode(texts)
    longest = max(map(len, codes), default=0)
    if longest > module.context:
        raise ConfigError(f"a text of {longest} tokens, the model sees {module.context}")
    windows = torch.full((len(codes), 1 + longest), tokenizer.document)
    for row, own in enumerate(codes):
        windows[row, 1 : 1 + len(own)] = torch.tensor(own)
    counted = torch.arange(longest) < torch.tensor([len(own) for own in codes])[:, None]
    told = [module.eval()(piece) for piece in torch.split(windows, TOGETHER)]
    scores: npt.NDArray[np.float64] = (torch.cat(told) * counted).sum(1).double().numpy()
    return scores


@torch.no_grad()
def _tokens(module: Writer, codes: list[int], drawing: Drawing) -> Iterator[int]:
    document, generator = codes[0], torch.Generator().manual_seed(drawing.seed)
    for _ in range(drawing.tokens):
        scores = module.scores(torch.tensor([codes[-module.context :]]))[0].float()
        token = _drawn(scores, drawing, generator)
        if token == document:
            return
        codes = [*codes[-module.context :], token]
        yield token


def _drawn(scores: Tensor, drawing: Drawing, generator: torch.Generator) -> int:
    """A token by `scores` [symbols]."""
    if drawing.temperature <= COLDEST:
        return int(scores.argmax())
    shares, order = (scores / drawing.temperature).softmax(-1).sort(descending=True)
    kept = shares * (shares.cumsum(-1) - shares < drawing.top_p)
    kept[0] = shares[0]
    return int(order[torch.multinomial(kept, 1, generator=generator)])
