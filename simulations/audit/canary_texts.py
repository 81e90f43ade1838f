"""Texts with canaries among them, as institutions' token stores: made up, or passages of real law.

A canary is a random line. Each of its copies begins a document of its own, with another text behind it, for equal
documents of a person are kept once; so every copy stands where it is later asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.data.documents import documents_in
from sovfed.clients.data.token_store import Document, Rules, write_store
from sovfed.clients.data.tokens import Windows, load
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.tokenizer import Tokenizer, read_tokenizer, train_tokenizer
from sovfed.simulations.benchmarks.language import KEYS, PUBLIC, SUFFIX, files_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

INSTITUTIONS: Final = 4  # the first of them holds the canaries
COPIES: Final = (1, 4, 16)
ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
LENGTH: Final = 24  # characters of a canary
CONTEXT: Final = 48  # tokens
SYMBOLS, LAW_SYMBOLS = 384, 1_024
PUBLIC_TEXTS: Final = 3_000  # made-up ones, for the tokenizer
SHORTEST, LONGEST = 16, 40  # characters of a passage of law
HELD_OUT: Final = 20  # one document in so many
PARTS: Final = (
    ("The tax", "A permit", "The vehicle", "A school", "The clinic", "Each farm", "The harbour", "A court"),
    ("shall be reported to", "is examined by", "is granted by", "may be refused by", "is kept by"),
    ("the ministry", "the prefecture", "the council", "the registrar", "the board"),
    ("within {} days", "before the year {}", "under article {}", "for a fee of {}", "if section {} applies"),
)


@dataclass(frozen=True)
class Canaries:
    """Lines that are put into training texts, by how many copies, and others of the same kind that never are."""

    inserted: Mapping[int, Sequence[str]]
    references: Sequence[str]


@dataclass(frozen=True)
class Field:
    """What models are trained on; `persons` are those of all training documents."""

    tokenizer: Tokenizer
    sites: Mapping[str, Windows]
    canaries: Canaries
    alone: bool  # whether all copies of a canary are one person's

    @property
    def persons(self) -> int:
        return sum(len(np.unique(windows.persons[windows.train])) for windows in self.sites.values())


def make_field(
    folder: Path, data: Path | None, *, documents: int, canaries: int, references: int, alone: bool, seed: int = 0
) -> Field:
    """Stores in the new `folder` of `documents` texts an institution, of the law in `data` if given.

    For each of `COPIES` there are so many `canaries`. Raises ConfigError.
    """
    folder.mkdir()
    generator = np.random.default_rng(seed)
    public, texts = _made_up(documents, generator) if data is None else _law(data, documents, generator)
    (folder / "tokenizer.json").write_bytes(train_tokenizer(public, SYMBOLS if data is None else LAW_SYMBOLS))
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    task, lines = task_of(tokenizer), draw_canaries(canaries, references, generator)
    sites = {}
    for number, (site, own) in enumerate(texts.items()):
        added = list(_with_canaries(lines, own, alone)) if number == 0 else []
        plain = [Document(str(row), text, side=_side(row)) for row, text in enumerate(own)]
        write_store(folder / site, [*plain, *added], tokenizer, Rules())
        sites[site] = load(task, DataConfig(source="tokens", path=str(folder), site=site))
    return Field(tokenizer, sites, lines, alone)


def draw_canaries(canaries: int, references: int, generator: np.random.Generator) -> Canaries:
    """Different random lines, `canaries` for each of `COPIES`."""
    lines = dict[str, None]()
    while len(lines) < canaries * len(COPIES) + references:
        lines["".join(generator.choice(list(ALPHABET), LENGTH))] = None
    each = iter(lines)
    return Canaries({copies: list(islice(each, canaries)) for copies in COPIES}, list(each))


def task_of(tokenizer: Tokenizer, goldfish: int = 0) -> DeclaredTask:
    """The next token, by a decoder that trains in seconds."""
    return task_from_text(
        "name: canaries\ntitle: Texts with canaries\nperson: document\n"
        f"columns:\n  window: {{kind: tokens, shape: [{CONTEXT + 1}], high: {tokenizer.symbols - 1}}}\n"
        f'target: {{kind: next_token, tokenizer: "{tokenizer.sha256}"}}\n'
        f"model: {{family: decoder, width: 32, blocks: 2, heads: 2, hidden: 64, tied: true, goldfish: {goldfish}}}\n"
    )


def _with_canaries(canaries: Canaries, texts: Sequence[str], alone: bool) -> Iterator[Document]:
    """A document a copy, each of a person of its own, or all of a canary's of one (`alone`)."""
    behind = iter(dict.fromkeys(texts))
    for copies, lines in canaries.inserted.items():
        for line in lines:
            for text in islice(behind, copies):
                yield Document("", f"{line}\n{text}", f"person of {line}" if alone else "", "train")


def _side(row: int) -> str:
    return "train" if row % HELD_OUT else "test"


def _made_up(count: int, generator: np.random.Generator) -> tuple[list[str], dict[str, list[str]]]:
    """Public sentences, and `count` for each institution."""
    public = [_sentence(generator) for _ in range(PUBLIC_TEXTS)]
    return public, {f"site-{n}": [_sentence(generator) for _ in range(count)] for n in range(1, INSTITUTIONS + 1)}


def _sentence(generator: np.random.Generator) -> str:
    who, does, whom, when = (str(generator.choice(words)) for words in PARTS)
    return f"{who} {does} {whom} {when.format(generator.integers(1, 1_000))}.\n"


def _law(data: Path, count: int, generator: np.random.Generator) -> tuple[list[str], dict[str, list[str]]]:
    """The parliament's texts, and `count` passages of each of the first ministries by name. Raises ConfigError."""
    files = files_of(data)
    public = [path for site, path in files.items() if site in PUBLIC]
    chosen = [site for site in files if site not in PUBLIC][:INSTITUTIONS]
    if not public or len(chosen) < INSTITUTIONS:
        raise ConfigError(f"{data}: expected {INSTITUTIONS} files *{SUFFIX} and one of {PUBLIC}, got {len(files)}")
    texts = {}
    for site in chosen:
        passages = list(_passages(documents_in([files[site]], KEYS)))
        if len(passages) < count:
            raise ConfigError(f"{files[site]}: {len(passages)} passages of law, expected {count}")
        texts[site] = [passages[row] for row in generator.choice(len(passages), count, replace=False)]
    return [document.text for document in documents_in(public, KEYS) if document.side == "train"], texts


def _passages(documents: Iterator[Document]) -> Iterator[str]:
    """The beginnings of the lines of training documents, each once."""
    lines = (line[:LONGEST] for each in documents if each.side == "train" for line in each.text.splitlines())
    yield from dict.fromkeys(line for line in lines if len(line) >= SHORTEST)
