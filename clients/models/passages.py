"""Which held-out text stands literally in training text, and how well a model tells it apart from what is new.

Text that is copied, as half of law is, says how well a model repeats; only the rest says how well it has learnt. A
token is copied if all its characters lie in a passage of `PASSAGE` characters or more that stands in a training text,
over any line break and to the letter. Passages are compared by hashes of 64 bits; what is kept is those of at most
`AT_ONCE` held-out characters, whatever the size of the training text, which is read once for each so many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data.token_store import TRAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sovfed.clients.data import Indices
    from sovfed.clients.data.token_store import Store
    from sovfed.clients.data.tokens import Windows
    from sovfed.clients.training.local import LocalTraining
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.tasks.tokenizer import Tokenizer

PASSAGE: Final = 24  # characters: code points
AT_ONCE: Final = 1 << 22  # held-out characters whose passages are looked for in one pass over the training text
MULTIPLIER: Final = 0x9E3779B97F4A7C15  # odd
Flags = npt.NDArray[np.bool_]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Apart:
    """Bits per byte of what stands in training text and of what is new (None of nothing); the share of the former."""

    copied: float | None
    new: float | None
    copied_share: float


def copied_apart(training: LocalTraining, windows: Windows, tokenizer: Tokenizer, vector: Vector, scale: Sums) -> Apart:
    """The model `vector` on the held-out text of `windows`, by what stands in their own training text."""
    documents = np.unique(windows.documents[windows.test])
    (copied,) = copied_tokens(tokenizer, [(windows.store, documents)], [windows.store])
    return apart(nats_by_group(training, windows, vector, scale, copied.astype(np.int64), 2))


def apart(sums: npt.NDArray[np.float64]) -> Apart:
    """Of nats and bytes [2, 2], of what is new and of what is copied."""
    new, copied = (nats / size / math.log(2.0) if size else None for nats, size in sums)
    return Apart(copied, new, float(sums[1, 1] / max(1.0, sums[:, 1].sum())))


def nats_by_group(
    training: LocalTraining, windows: Windows, vector: Vector, scale: Sums, groups: Indices, count: int
) -> npt.NDArray[np.float64]:
    """Σ −log p and bytes of the held-out tokens of each of `count` groups: [count, 2].

    `groups` says of each place of the store which group its token is in; those below 0 are left out. `training` holds
    the records `windows`.
    """
    sums, done = np.zeros((count, 2)), 0
    for outputs, _ in training.outputs(vector, scale, windows.test):
        places, counted = windows.predicted(windows.test[done : done + len(outputs)])
        done += len(outputs)
        told = places[counted]
        kept = groups[told] >= 0
        of = groups[told][kept]
        sums[:, 0] += np.bincount(of, -outputs[counted][kept].astype(np.float64), count)
        sums[:, 1] += np.bincount(of, windows.store.lengths[windows.store.tokens[told]][kept], count)
    return sums


def copied_tokens(
    tokenizer: Tokenizer, held_out: Sequence[tuple[Store, Indices]], stores: Sequence[Store]
) -> list[Flags]:
    """For each store of `held_out`, with some of its documents: which tokens are copied from training text [tokens].

    The training text is that of all `stores`.
    """
    flags = [np.zeros(len(store.tokens), bool) for store, _ in held_out]
    which = [(number, document) for number, (_, documents) in enumerate(held_out) for document in documents.tolist()]
    texts = (text_of(tokenizer, held_out[number][0], document) for number, document in which)

    def training() -> Iterator[str]:
        for store in stores:
            yield from (
                text_of(tokenizer, store, document) for document in np.flatnonzero(store.sides == TRAIN).tolist()
            )

    for (number, document), (text, characters) in zip(which, standing(texts, training), strict=True):
        store = held_out[number][0]
        place = slice(int(store.starts[document]) + 1, int(store.starts[document + 1]))
        flags[number][place] = _by_token(text, characters, store.lengths[store.tokens[place]])
    return flags


def standing(texts: Iterable[str], training: Callable[[], Iterable[str]]) -> Iterator[tuple[str, Flags]]:
    """Each of `texts`, and which of its characters [n] lie in a passage that stands in one of `training`'s texts."""
    for group in _groups(texts):
        hashes = [hashed(text) for text in group]
        known = np.unique(np.concatenate(hashes))
        seen = np.zeros(len(known) + 1, bool)  # the last: none of them
        for text in training():
            seen[_places(known, hashed(text))] = True
        seen[-1] = False
        for text, own in zip(group, hashes, strict=True):
            yield text, _covered(seen[_places(known, own)], len(text))


def hashed(text: str) -> Hashes:
    """The hash of each passage of `PASSAGE` characters, [max(0, n − 23)]: a polynomial of their code points mod 2^64.

    Those of 1, 2, 4, 8 and 16 characters make those of 24.
    """
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    if len(points) < PASSAGE:
        return np.zeros(0, np.uint64)
    sums = [points]
    for size in (1, 2, 4, 8):
        sums.append(_joined(sums[-1], sums[-1][size:], size))
    return _joined(sums[4], sums[3][16:], 8)


def text_of(tokenizer: Tokenizer, store: Store, document: int) -> str:
    """The text of a document of `store`."""
    return tokenizer.decode(store.tokens[store.starts[document] : store.starts[document + 1]].tolist()).decode()


def _joined(first: Hashes, second: Hashes, size: int) -> Hashes:
    """Hashes of texts, each the one of `first` with the `size` characters of `second` behind it."""
    power = np.uint64(pow(MULTIPLIER, size, 1 << 64))
    return first[: len(second)] * power + second


def _places(known: Hashes, own: Hashes) -> Indices:
    """Where each of `own` is in the sorted `known`; its length for one that is not."""
    places = np.searchsorted(known, own)
    absent = places == len(known)
    absent[~absent] = known[places[~absent]] != own[~absent]
    return np.where(absent, len(known), places).astype(np.int64)


def _covered(begins: Flags, length: int) -> Flags:
    """Which of `length` characters lie in a passage that begins where `begins` says so."""
    change = np.zeros(length + 1, np.int64)
    change[: len(begins)] += begins
    change[PASSAGE : PASSAGE + len(begins)] -= begins
    return np.cumsum(change)[:length] > 0


def _by_token(text: str, characters: Flags, lengths: npt.NDArray[np.int32]) -> Flags:
    """Which tokens, of so many bytes each [t], have all their bytes in flagged characters."""
    content = np.frombuffer(text.encode(), np.uint8)
    of = np.cumsum((content & 0xC0) != 0x80) - 1  # the character of each byte
    flagged = np.concatenate([[0], np.cumsum(characters[of])])
    ends = np.cumsum(lengths)
    whole: Flags = (flagged[ends] - flagged[ends - lengths] == lengths) & (lengths > 0)
    return whole


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """`texts` in lists of at most `AT_ONCE` characters, or of one text."""
    group, size = list[str](), 0
    for text in texts:
        if group and size + len(text) > AT_ONCE:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group
