"""Tokenizers of others: byte-level BPE as in GPT-2's, Llama 3's and Qwen's files, and nothing that loses a byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.tokenizer import BEGINNINGS, DOCUMENT, read_tokenizer

tokenizers = pytest.importorskip("tokenizers")
PUBLIC = [f"第{number}条 この法律は施行する。 Artikel {number}: It's Recht\n" for number in range(60)]
TEXTS = ["It's 2026年。\r\n\tＡ😀 für  <|endoftext|> <tool>", "", " ", "第一条"]
PATTERN = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def written(path: Path, kind: str, special: tuple[str, ...], **changes: Any) -> Path:
    """A tokenizer's file of that kind; `changes` are to its parts, as JSON."""
    bytewise = tokenizers.pre_tokenizers.ByteLevel
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    if kind == "gpt2":
        made.pre_tokenizer = bytewise(add_prefix_space=False)
    else:
        cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated")
        made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [cut, bytewise(add_prefix_space=False, use_regex=False)]
        )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=bytewise.alphabet(), special_tokens=[], show_progress=False
    )
    made.train_from_iterator(PUBLIC, trainer)
    made.add_special_tokens(list(special))
    made.add_tokens(["<tool>", "  "])
    path.write_text(json.dumps({**json.loads(made.to_str()), **changes}))
    return path


@pytest.mark.parametrize(
    ("kind", "special", "begin"),
    [
        ("gpt2", ("<|endoftext|>",), "<|endoftext|>"),
        ("llama3", ("<|end_of_text|>", "<|begin_of_text|>"), "<|begin_of_text|>"),
        ("qwen2", ("<|im_start|>", "<|endoftext|>"), "<|endoftext|>"),
    ],
)
def test_every_byte_of_a_text_is_kept_and_a_document_has_its_beginning(
    kind: str, special: tuple[str, ...], begin: str, tmp_path: Path
) -> None:
    changes = {"normalizer": {"type": "NFC"}} if kind == "qwen2" else {}
    tokenizer = read_tokenizer(written(tmp_path / "tokenizer.json", kind, special, **changes))
    encoded = tokenizer.encode(TEXTS)
    assert [tokenizer.decode(codes).decode() for codes in encoded] == TEXTS
    assert tokenizer.model.id_to_token(tokenizer.document) == begin
    assert tokenizer.pieces[tokenizer.document] == b""
    assert not {tokenizer.document} & {code for codes in encoded for code in codes}  # its letters in a text are text
    assert [sum(map(int, tokenizer.lengths[codes])) for codes in encoded] == [len(text.encode()) for text in TEXTS]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "another kind"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, "another kind"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}}, "another kind"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}]}}, "another kind"),
        ({"padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_id": 0, "pad_type_id": 0,
                      "pad_token": "x", "pad_to_multiple_of": None}}, "another kind"),
        ({"added_tokens": []}, f"no token that begins|without a token that begins a document.*{BEGINNINGS[1][2:7]}"),
        ({"added_tokens": [{"id": "x"}]}, "no tokenizer's file"),
    ],
)  # fmt: skip
def test_what_may_lose_a_byte_is_refused_in_words(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = written(tmp_path / "tokenizer.json", "gpt2", (DOCUMENT,), **changes)
    with pytest.raises(ConfigError, match=told):
        read_tokenizer(path)
