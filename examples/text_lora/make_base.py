"""A small BERT in a local folder, as `from_pretrained` reads it: nothing is downloaded.

    python examples/text_lora/make_base.py FOLDER

It has learnt to tell German from Japanese, bytes of which are its only vocabulary.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from texts import LENGTH, texts
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

SYMBOLS = 257  # bytes, and 0 behind the end


def prepare(folder: Path, steps: int = 60) -> Path:
    """Train the base and save it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=SYMBOLS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rows = torch.from_numpy(texts(512, seed=1)[0]).long()
    japanese = (rows == 0xE3 + 1).any(1).long()  # the first byte of every kana
    for step in range(steps):
        batch = slice(step * 32 % 512, step * 32 % 512 + 32)
        optimizer.zero_grad()
        logits = model(input_ids=rows[batch], attention_mask=(rows[batch] > 0).long()).logits
        cross_entropy(logits, japanese[batch]).backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1])))
