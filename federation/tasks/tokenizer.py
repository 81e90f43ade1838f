"""A tokenizer that cuts any text into tokens and gives back its bytes: byte-pair encoding over the bytes of UTF-8.

Its file is made from public text alone, for whoever holds it can read in it which words were frequent. A task names the
file's SHA-256, so all institutions cut their texts alike. The library is `tokenizers`, of the extra `llm`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

MAX_BYTES: Final = 1 << 26  # of a file
LEAST, MOST = 256 + 1, 1 << 20  # tokens: every byte, and the one that begins a document
DOCUMENT: Final = "<|document|>"  # stands before a document's first byte
BEGINNINGS: Final = (DOCUMENT, "<|begin_of_text|>", "<|endoftext|>", "<s>", "<bos>")  # what does in others' files


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer with the SHA-256 of its file. `document` is the token that stands before a document's first byte.

    `added` are the tokens beside the vocabulary by number: the bytes of each, none of one that stands for no text.
    """

    model: Any
    sha256: str
    document: int
    added: Mapping[int, bytes]

    @cached_property
    def symbols(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.model.get_vocab_size())

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes that each token stands for; none for what begins a document, as for a number that is no token."""
        by_character = _bytes_by_character()
        texts = ("" if token in self.added else self.model.id_to_token(token) or "" for token in range(self.symbols))
        return tuple(
            self.added.get(token, bytes(by_character[each] for each in text)) for token, text in enumerate(texts)
        )

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Bytes of each token's text, shape [symbols]."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text; half of a surrogate pair, which is no character, is a question mark."""
        whole = [text.encode("utf-8", "replace").decode() for text in texts]
        return [encoded.ids for encoded in self.model.encode_batch_fast(whole, add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> bytes:
        """The bytes of the text, of which the last character may not be whole."""
        return b"".join(self.pieces[token] for token in tokens)


def train_tokenizer(texts: Iterable[str], size: int) -> bytes:
    """The file of a tokenizer of `size` tokens, made from public `texts`. Raises ConfigError."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if not LEAST <= size <= MOST:
        raise ConfigError(f"a tokenizer of {size} tokens, expected {LEAST} to {MOST}")
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[DOCUMENT], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(texts, trainer)
    if library.get_vocab_size() != size:
        raise ConfigError(f"the texts give {library.get_vocab_size()} tokens, not {size}: take more text, or fewer")
    return str(library.to_str()).encode()


def read_tokenizer(path: Path, sha256: str = "") -> Tokenizer:
    """The tokenizer in the file `path`, of the digest `sha256` ("": any). Raises ConfigError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: not readable: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: over {MAX_BYTES} bytes, which no tokenizer has")
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256:
        raise ConfigError(f"{path}: SHA-256 {digest[:16]}…, the task asks for the tokenizer {sha256[:16]}…")
    try:
        return _read(content, digest)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _read(content: bytes, digest: str) -> Tokenizer:
    from tokenizers import Tokenizer as Library

    try:
        parts = json.loads(content)
        library = Library.from_str(content.decode()) if _keeps_bytes(parts) else None
        added = {int(each["id"]): each for each in parts["added_tokens"]}
        special = {each["content"]: token for token, each in added.items() if each["special"]}
        begin = [special[text] for text in BEGINNINGS if text in special]
        pieces = {token: b"" if each["special"] else str(each["content"]).encode() for token, each in added.items()}
    except Exception as error:  # what the library raises is a bare Exception
        raise ConfigError("no tokenizer's file") from error
    if library is None:
        raise ConfigError(
            "a tokenizer of another kind; byte-level BPE, as of GPT-2, Llama 3 or Qwen, keeps every byte, and `sovfed "
            "task tokenizer` makes one"
        )
    if not begin:
        raise ConfigError(
            f"a tokenizer without a token that begins a document, which is one of {', '.join(BEGINNINGS)}"
        )
    library.encode_special_tokens = True  # as any other text: a document may hold the letters of what begins one
    tokenizer = Tokenizer(library, digest, begin[0], pieces)
    if tokenizer.symbols > MOST:
        raise ConfigError(f"a tokenizer of {tokenizer.symbols} tokens, at most {MOST}")
    if {piece for piece in tokenizer.pieces if len(piece) == 1} != {bytes([value]) for value in range(256)}:
        raise ConfigError("a tokenizer that has not a token for every byte")
    return tokenizer


def _keeps_bytes(parts: Any) -> bool:
    """Whether what it says of itself is byte-level BPE that leaves nothing of a text out.

    Text is cut by patterns or not, each part kept, and then taken by its bytes. Characters may be composed (NFC), which
    is as another, equal text.
    """
    model, before, composed = parts["model"], parts["pre_tokenizer"], {"type": "NFC"}
    *cuts, last = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    kept = (each["type"] == "Digits" or (each["type"] == "Split" and each["behavior"] == "Isolated") for each in cuts)
    return (
        model["type"] == "BPE" and not model.get("dropout") and (parts["normalizer"] or composed) == composed
        and parts["truncation"] is None and parts["padding"] is None
        and last["type"] == "ByteLevel" and not last["add_prefix_space"] and all(kept)
    )  # fmt: skip


def _bytes_by_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (Radford et al. 2019, GPT-2's encoder)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in own]
    return {chr(value): value for value in own} | {chr(256 + index): value for index, value in enumerate(others)}
