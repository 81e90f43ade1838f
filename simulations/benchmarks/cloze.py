"""Cloze on held-out law: a term that an article defines, or the number of an article that it names, is hidden.

Of four candidates, the true one and three of other articles that are as long, is the true one the likeliest together
with what stands before and behind it? Who knows nothing is right one time in four.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.models.generation import log_p

if TYPE_CHECKING:
    from sovfed.federation.tasks.decoder import Decoder
    from sovfed.federation.tasks.tokenizer import Tokenizer

CANDIDATES: Final = 4
BEFORE, BEHIND = 48, 16  # characters that are shown
MOST: Final = 200  # items of a kind
ARTICLE: Final = re.compile(r"^(?=第[一二三四五六七八九十百]+条|§ \d)", re.MULTILINE)
HIDDEN: Final[Mapping[str, re.Pattern[str]]] = {
    "term": re.compile(r"(?<=「)[^「」\n]{2,16}(?=」という。)"),
    "number": re.compile(r"(?<=[^\n]第)[一二三四五六七八九十百]+(?=条)|(?<=[^\n]§ )\d+\b"),
}
Z: Final = 1.96  # of 95 %


@dataclass(frozen=True)
class Item:
    """`candidates`, the true one first, between what stands `before` and `behind`."""

    before: str
    candidates: tuple[str, ...]
    behind: str

    @property
    def texts(self) -> list[str]:
        return [f"{self.before}{candidate}{self.behind}" for candidate in self.candidates]


def items_of(texts: Sequence[str], kind: str, seed: int = 0) -> list[Item]:
    """At most `MOST` items of the `kind` term or number, drawn by `seed` from the articles of `texts`."""
    generator = np.random.default_rng(seed)
    articles = [article for text in texts for article in ARTICLE.split(text)]
    pool = sorted({match[0] for article in articles for match in HIDDEN[kind].finditer(article)})
    every = [item for article in articles for item in _items(article, HIDDEN[kind], pool, generator)]
    return [every[row] for row in sorted(generator.permutation(len(every))[:MOST])]


def cloze(module: Decoder, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[int, int]:
    """In how many of `items` the true candidate is the likeliest, and of how many; too long ones are left out."""
    fitting = [item for item in items if max(map(len, tokenizer.encode(item.texts))) <= module.context]
    if not fitting:
        return 0, 0
    scores = log_p(module, tokenizer, [text for item in fitting for text in item.texts]).reshape(-1, CANDIDATES)
    return int((scores[:, 1:].max(1) < scores[:, 0]).sum()), len(fitting)


def cloze_figures(name: str, module: Decoder, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, float]:
    """Accuracy, its 95 % interval and the number of items of each kind, as figures of `name`."""
    figures = dict[str, float]()
    for kind in HIDDEN:
        right, count = cloze(module, tokenizer, items_of(texts, kind))
        if count:
            low, high = interval(right, count)
            told = {"accuracy": right / count, "low": low, "high": high, "items": float(count)}
            figures |= {f"{name}_cloze_{kind}_{each}": figure for each, figure in told.items()}
    return figures


def interval(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, for items that are independent.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    share, square = right / count, Z**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return middle - half, middle + half


def _items(
    article: str, hidden: re.Pattern[str], pool: Sequence[str], generator: np.random.Generator
) -> Iterator[Item]:
    """The places in `article` for which there are as long candidates that it does not name."""
    for match in hidden.finditer(article):
        others = [other for other in pool if len(other) == len(match[0]) and other not in article]
        if len(others) < CANDIDATES - 1:
            continue
        chosen = generator.choice(others, CANDIDATES - 1, replace=False)
        yield Item(article[: match.start()][-BEFORE:], (match[0], *map(str, chosen)), article[match.end() :][:BEHIND])
