"""A small BERT in a local folder, as `from_pretrained` reads it: nothing is downloaded.

    python examples/text_lora/make_base.py [FOLDER]

It has learnt to fill in hidden bytes of texts in German and Japanese, as Devlin et al. (2019) have it, and has seen the
area of none.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from text_lora.task import BASE, LENGTH
from text_lora.texts import texts

HIDDEN = 257  # the symbol in the place of a hidden byte; bytes are 1 to 256, and 0 stands behind the end
SHARE = 0.3  # of the bytes are hidden: neighbours in a word tell much, so more than of whole words


def prepare(folder: Path, steps: int = 400) -> Path:
    """Train the base and save it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=HIDDEN + 1, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    rows = torch.from_numpy(texts(2048, seed=1)[0]).long()
    for _ in range(steps):
        batch = rows[torch.randint(0, len(rows), (32,))]
        hidden = (torch.rand(batch.shape) < SHARE) & (batch > 0)
        optimizer.zero_grad()
        logits = model(input_ids=batch.masked_fill(hidden, HIDDEN), attention_mask=(batch > 0).long()).logits
        cross_entropy(logits[hidden], batch[hidden]).backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]) if sys.argv[1:] else BASE))
