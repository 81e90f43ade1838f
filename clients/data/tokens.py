"""Windows of tokens from a store that `sovfed client data prepare` made: for language models.

A record is a window of one document, never of two; a person is whoever the store says. Of a text that is trained on,
every token is predicted once. Of one held out too, but with at least half a window before it where there is so much.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Connector
from sovfed.clients.data.token_store import HEAD, HELD_OUT, TRAIN, read_store
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.targets import BYTES, GIVEN

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.clients.data.token_store import Store
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Schema, Table


@dataclass(frozen=True, repr=False, eq=False)
class Windows:
    """A `Dataset` of windows of `width` tokens, which are read when they are asked for."""

    store: Store
    schema: Schema
    documents: Indices  # of each window [n]
    firsts: Indices  # the place of its first token [n]; before its document's, in one that is shorter
    given: Indices  # its tokens that another window predicts, or that fill it up [n]
    train: Indices
    test: Indices
    several_records: bool = True
    not_private: str = ""

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        return f"<{len(self)} windows: {len(self.train)} train, {len(self.test)} held out>"

    @property
    def persons(self) -> Indices:
        persons: Indices = self.store.persons[self.documents]
        return persons

    @property
    def idle(self) -> float:
        """The share of the places in training windows that predict nothing: of texts that are shorter, and of ends."""
        return float(self.given[self.train].mean() / (self.schema.shaped[0].size - 1)) if len(self.train) else 0.0

    def take(self, rows: Indices) -> Table:
        """The windows at `rows`, with the bytes of what is predicted in each."""
        window = self.schema.shaped[0]
        places = self.firsts[rows, None] + np.arange(window.size)
        begins = self.store.starts[self.documents[rows], None]
        tokens = np.where(places < begins, self.store.document, self.store.tokens[np.maximum(places, begins)])
        counted = self.predicted(rows)[1]
        texts = (self.store.lengths[tokens[:, 1:]] * counted).sum(1)
        table = {window.name: tokens, GIVEN: self.given[rows], BYTES: texts}
        return {name: table[name].astype(kind) for name, (kind, _) in self.schema.stored().items()}

    def predicted(self, rows: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
        """The store's places of all tokens but the first of the windows at `rows`, and which are not given [n, t]."""
        order = np.arange(self.schema.shaped[0].size - 1)
        return self.firsts[rows, None] + 1 + order, order >= self.given[rows, None]


def load(task: Task, config: DataConfig) -> Windows:
    """The windows of the store `config.path`, or of SITE in a folder of several. Raises DataError."""
    if not task.tokenizer:
        raise DataError(
            f"data.source 'tokens' holds tokens, for a target of kind next_token; task '{task.name}' has none"
        )
    folder = _folder(config)
    store = read_store(folder, task.tokenizer)
    window = task.schema.shaped[0]
    if len(store.lengths) != int(window.high) + 1:
        raise DataError(f"{folder}: {len(store.lengths)} tokens, column '{window.name}' ends at {window.high:g}")
    sides = [
        cut(store.starts, np.flatnonzero(store.sides == side), window.size, stride)
        for side, stride in ((TRAIN, window.size - 1), (HELD_OUT, max(1, (window.size - 1) // 2)))
    ]
    documents, firsts, given = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    train, test = np.split(np.arange(len(documents)), [len(sides[0][0])])
    return Windows(store, task.schema, documents, firsts, given, train, test)


def cut(starts: Indices, documents: Indices, width: int, stride: int) -> tuple[Indices, Indices, Indices]:
    """Windows of `width` tokens of `documents`: of each its document, first place and given tokens, shape [n].

    All but the first token of a window are predicted from those before. Each starts `stride` places behind the one
    before it and the last ends with its document; what is predicted already, or fills up a short text, is given.
    """
    begins, ends = starts[documents], starts[documents + 1]
    lasts = ends - width  # before `begins` in a document that is shorter than a window
    counts = np.maximum(1, -(-(lasts - begins) // stride) + 1)
    of = np.repeat(np.arange(len(documents)), counts)
    turns = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    firsts = np.minimum(begins[of] + turns * stride, lasts[of])
    predicted_to = np.where(turns > 0, begins[of] + (turns - 1) * stride + width, begins[of] + 1)
    return documents[of], firsts, predicted_to - firsts - 1


def _folder(config: DataConfig) -> Path:
    if not config.path:
        raise DataError("data.source 'tokens' needs data.path: the folder that `sovfed client data prepare` made")
    folder = Path(config.path).expanduser()
    return folder / config.site if (folder / config.site / HEAD).is_file() else folder


def _sites(config: DataConfig) -> tuple[str, ...]:
    """The stores within the folder data.path; none where it is a store itself. Raises DataError."""
    folder = Path(config.path or "").expanduser()
    if not config.path or not folder.is_dir() or (folder / HEAD).is_file():
        return ()
    stores = tuple(sorted(path.name for path in folder.iterdir() if (path / HEAD).is_file()))
    if not stores:
        raise DataError(
            f"{folder}: no token store, and none in it; `sovfed client data prepare` makes one of documents"
        )
    return stores


CONNECTOR: Final = Connector(load, sites=_sites, reads=())
