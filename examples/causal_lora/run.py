"""A Hugging Face causal language model goes on learning by LoRA at three institutions; transformers loads the result.

pip install 'sovfed[simulate,llm]'
python examples/causal_lora/run.py [--quick] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from causal_lora import make_base
from causal_lora.make_base import BASE, CONTEXT
from causal_lora.texts import sentences

import sovfed
from sovfed.clients.data.token_store import Document, Rules, write_store
from sovfed.federation.models.export import to_hugging_face
from sovfed.federation.models.saved import load_model
from sovfed.federation.tasks.bases import digest_of
from sovfed.federation.tasks.tokenizer import read_tokenizer

TASK = """
name: law_text
title: The next token of law, from a public base on
person: document
columns:
  window: {{kind: tokens, shape: [{width}], high: {last}}}
target: {{kind: next_token, tokenizer: "{tokenizer}"}}
model: {{family: causal_lm, base: "{base}", rank: 8}}
"""
NAMES = ("east", "north", "south")
TEXTS = 200  # documents of an institution, one in ten held out
PLAIN: Mapping[str, Any] = {
    "strategy": "fedsgd", "secagg": "compact", "secagg.max_weight": 1_000,
    "task.optimizer": "adamw", "task.learning_rate": 0.01, "task.beta_2": 0.95, "task.schedule": "wsd",
    "task.warmup": 0.05, "task.batch_size": 16, "client": "cpu", "server.min_cohort": 3, "privacy.colluders": 0,
}  # fmt: skip
PRIVATE: Mapping[str, Any] = {
    "secagg": "full", "privacy": "distributed", "privacy.epsilon": 8, "privacy.delta": 1e-4, "evaluate_every": 1,
    "privacy.population": 9 * TEXTS * len(NAMES) // 10, "privacy.sampling_rate": 0.5, "task.learning_rate": 0.002,
    "task.schedule": "constant", "task.warmup": 0,
}  # fmt: skip


def prepare(folder: Path, base: Path) -> Path:
    """A token store for each institution, as `sovfed client data prepare` makes it of its documents."""
    tokenizer = read_tokenizer(base / "tokenizer.json")
    for seed, name in enumerate(NAMES, start=10):
        documents = [Document(f"{name}-{row}", text) for row, text in enumerate(sentences(TEXTS, seed))]
        write_store(folder / name, documents, tokenizer, Rules())
    return folder


def task_of(base: Path, folder: Path) -> Path:
    """The task.yaml of the base in `base`, as `sovfed task language --base` writes it, in `folder`."""
    tokenizer = read_tokenizer(base / "tokenizer.json")
    told = {"width": CONTEXT + 1, "last": tokenizer.symbols - 1, "tokenizer": tokenizer.sha256}
    path = folder / "law_text.yaml"
    path.write_text(TASK.format(**told, base=digest_of(base)))
    return path


def trained(base: Path, stores: Path, rounds: int, **settings: Any) -> sovfed.Result:
    """The federation of the stores in `stores`, in this process; its first round tells the base's own bits per byte."""
    where = {"task.base": base, "data": "tokens", "data.path": stores}
    told = {**where, "evaluate_every": max(1, rounds), **PLAIN, **settings}
    return sovfed.simulate(task_of(base, stores.parent), settings=told, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the rounds")
    parser.add_argument("--private", action="store_true", help="with ε = 8 for each document")
    parser.add_argument("--out", type=Path, help="where the model is written for transformers")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        base = BASE if BASE.exists() else make_base.prepare(Path(temporary) / "base")
        stores = prepare(Path(temporary) / "stores", base)
        before = trained(base, stores, 1).rounds["bits_per_byte"].iloc[0]
        rounds = 20 if chosen.quick or chosen.private else 100
        result = trained(base, stores, rounds, **(PRIVATE if chosen.private else {}))
        print(f"bits per byte: {before:.3f} of the base, {result.metrics['bits_per_byte']:.3f} after {rounds} rounds; "
              f"{result.task.parameters:,} values travel")  # fmt: skip
        if chosen.out:
            to_hugging_face(load_model(result.folder), chosen.out)
            print(chosen.out)


if __name__ == "__main__":
    main()
