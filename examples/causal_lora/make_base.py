"""A small Llama in a local folder, as `from_pretrained` reads it: nothing is downloaded.

    python examples/causal_lora/make_base.py [FOLDER]

It has learnt from public sentences about taxes and traffic; of health, which the institutions write about, it has read
nothing. A real one is any folder with `config.json`, `model.safetensors` and a byte-level BPE `tokenizer.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from causal_lora.texts import sentences

from sovfed.federation.tasks.causal_lm import CausalLM
from sovfed.federation.tasks.tokenizer import read_tokenizer, train_tokenizer

BASE = Path(__file__).with_name("base")
CONTEXT = 32  # tokens that it learns to see
SYMBOLS = 400


def prepare(folder: Path, steps: int = 300) -> Path:
    """Make the tokenizer, train the base and save both."""
    public = sentences(2_000, seed=1, areas=("tax", "traffic"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(train_tokenizer(public, SYMBOLS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    codes = torch.tensor([code for text in tokenizer.encode(public) for code in (tokenizer.document, *text)])
    stream = codes[: len(codes) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(
        vocab_size=SYMBOLS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4 * CONTEXT, bos_token_id=tokenizer.document, eos_token_id=tokenizer.document,
        pad_token_id=None, attn_implementation="eager",
    ))  # fmt: skip
    model, optimizer = CausalLM(base, CONTEXT), torch.optim.AdamW(base.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        (-model(stream[torch.randint(0, len(stream), (16,))]).mean()).backward()
        optimizer.step()
        schedule.step()
    base.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]) if sys.argv[1:] else BASE))
