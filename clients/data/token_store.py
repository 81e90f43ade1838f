"""Documents as tokens in a folder, made once by `sovfed client data prepare` and mapped from then on.

tokens.bin      every kept document's tokens one after the other, each behind the token that begins a document
starts.npy      where each begins, and the end of the last, int64 [documents + 1]
persons.npy     whose each is, a number a person, int64 [documents]
sides.npy       0 train, 1 held out, 2 left out, uint8 [documents]
lengths.npy     bytes of each token's text, int32 [symbols]
store.json      format, tokenizer's SHA-256, the token that begins a document, counts

No name of a person or document is in it. Which side a document is on follows from its person's name alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data.split import uniform
from sovfed.clients.data.tables.opt_out import likeness
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.files import private_directory, write_private

if TYPE_CHECKING:
    from sovfed.federation.tasks.tokenizer import Tokenizer

FORMAT: Final = 1
HEAD: Final = "store.json"
TOKENS: Final = "tokens.bin"
ARRAYS: Final = ("starts", "persons", "sides", "lengths")
TRAIN, HELD_OUT, LEFT_OUT = 0, 1, 2
SIDES: Final = {"train": TRAIN, "test": HELD_OUT, "valid": LEFT_OUT}
TOGETHER: Final = 64  # documents that are cut into tokens at once
WIDE: Final = 1 << 16  # tokens of a vocabulary from which on one takes four bytes
SALT: Final = "tokens/held-out"
_TXT: Final = re.compile(r"\.txt$", re.IGNORECASE)
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Document:
    """A text with its name, whose it is ("": it stands for itself), and its side where that is settled."""

    name: str
    text: str
    person: str = ""
    side: str = ""


@dataclass(frozen=True)
class Rules:
    """What is left out, and how much is held out where a document does not say."""

    opted_out: frozenset[str] = frozenset()  # likenesses of names, of documents and of persons
    held_out: float = 0.1


@dataclass
class Counts:
    """What became of the documents."""

    documents: int = 0
    opted_out: int = 0
    repeated: int = 0
    empty: int = 0
    tokens: int = 0
    bytes: int = 0
    persons: int = 0
    train: int = 0  # documents, as the next
    held_out: int = 0
    found: set[str] = field(default_factory=set)  # likenesses of those who opted out and are here


@dataclass(frozen=True, repr=False)
class Store:
    """A folder's arrays; those of tokens are mapped, and read when they are asked for."""

    tokens: npt.NDArray[np.unsignedinteger[Any]]
    starts: Indices
    persons: Indices
    sides: npt.NDArray[np.uint8]
    lengths: npt.NDArray[np.int32]
    tokenizer: str
    document: int = 0  # the token that begins one


def write_store(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer, rules: Rules) -> Counts:
    """Make `folder` of `documents`; equal texts of a person are kept once. All or nothing. Raises ConfigError.

    A document that names no person is one by itself, and equal ones are the same. So a person who comes or goes moves
    no document of another's, as private training needs.
    """
    if folder.exists():
        raise ConfigError(f"{folder}: there already; choose a new folder")
    draft = private_directory(folder.absolute().parent / f".{folder.name}.{os.getpid()}")
    try:
        counts = _write(draft, documents, tokenizer, rules)
        draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return counts


def read_store(folder: Path, tokenizer: str) -> Store:
    """The store in `folder`, whose texts the tokenizer of digest `tokenizer` has cut. Raises DataError."""
    try:
        head = json.loads((folder / HEAD).read_bytes())
        format_, used, count = head["format"], head["tokenizer"], int(head["counts"]["tokens"])
        document = int(head.get("document", 0))
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        tokens = np.memmap(folder / TOKENS, _dtype(len(arrays["lengths"])), "r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: no token store; make one with `sovfed client data prepare`") from error
    if format_ != FORMAT:
        raise DataError(f"{folder}: a token store of format {str(format_)[:8]}, expected {FORMAT}: prepare it again")
    if used != tokenizer:
        raise DataError(
            f"{folder}: cut by the tokenizer {str(used)[:16]}…, the task asks for {tokenizer[:16]}…: prepare it again"
        )
    store = Store(tokens, **arrays, tokenizer=tokenizer, document=document)
    if not 0 <= document < len(store.lengths):
        raise DataError(f"{folder}: no token {document}, which is said to begin a document; prepare it again")
    if len(tokens) != count or store.starts[-1] != count or len(store.persons) != len(store.starts) - 1:
        raise DataError(f"{folder}: not whole: {len(tokens)} of {count} tokens; prepare it again")
    return store


def _write(folder: Path, documents: Iterable[Document], tokenizer: Tokenizer, rules: Rules) -> Counts:
    counts, kind = Counts(), _dtype(tokenizer.symbols)
    starts, names, sides = [0], list[str](), list[str]()
    with (folder / TOKENS).open("wb") as file:
        kept = _kept(documents, rules, counts)
        while batch := list(islice(kept, TOGETHER)):
            for (document, person), codes in zip(
                batch, tokenizer.encode([each.text for each, _ in batch]), strict=True
            ):
                file.write(np.array([tokenizer.document, *codes], kind).tobytes())
                starts.append(starts[-1] + 1 + len(codes))
                names.append(person)
                sides.append(document.side)
        file.flush()
        os.fsync(file.fileno())
    if not names:
        raise ConfigError("no document is left to be kept")
    counts.documents, counts.tokens = len(names), starts[-1]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    arrays: dict[str, npt.NDArray[Any]] = {
        "starts": np.array(starts, np.int64), "persons": np.array([numbers[name] for name in names], np.int64),
        "sides": _sides(names, sides, rules.held_out), "lengths": tokenizer.lengths,
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    counts.persons = len(numbers)
    counts.train, counts.held_out = (int((arrays["sides"] == side).sum()) for side in (TRAIN, HELD_OUT))
    told = {name: value for name, value in vars(counts).items() if name != "found"}
    head = {"format": FORMAT, "tokenizer": tokenizer.sha256, "document": tokenizer.document, "counts": told}
    write_private(folder / HEAD, json.dumps(head, indent=2).encode())
    return counts


def _kept(documents: Iterable[Document], rules: Rules, counts: Counts) -> Iterator[tuple[Document, str]]:
    """The documents that are kept, each with the name of its person."""
    seen: set[bytes] = set()
    for document in documents:
        if found := rules.opted_out and rules.opted_out & _likenesses(document):
            counts.opted_out += 1
            counts.found |= found
            continue
        if not document.text.strip():
            counts.empty += 1
            continue
        content = document.text.encode("utf-8", "replace")
        digest = hashlib.sha256(content)
        key = hashlib.sha256(digest.digest() + document.person.encode("utf-8", "replace")).digest()
        if key in seen:
            counts.repeated += 1
            continue
        seen.add(key)
        counts.bytes += len(content)
        yield document, f"person/{document.person}" if document.person else f"text/{digest.hexdigest()}"


def _likenesses(document: Document) -> set[str]:
    """Of its person, and of its name with and without the ending of a text file."""
    return {likeness(name) for name in (document.name, _TXT.sub("", document.name), document.person)}


def _sides(names: list[str], sides: list[str], held_out: float) -> npt.NDArray[np.uint8]:
    drawn = np.where(uniform(SALT, names) < held_out, HELD_OUT, TRAIN)
    return np.array([SIDES.get(side, side_drawn) for side, side_drawn in zip(sides, drawn, strict=True)], np.uint8)


def _dtype(symbols: int) -> np.dtype[Any]:
    return np.dtype("<u2" if symbols <= WIDE else "<u4")
