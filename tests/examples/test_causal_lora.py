"""A causal language model by Hugging Face with LoRA: that it learns, and that transformers loads what came of it."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sovfed.federation.models.export import to_hugging_face
from sovfed.federation.models.saved import load_model
from sovfed.federation.tasks.tokenizer import read_tokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")
FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield importlib.import_module("causal_lora.run")


def test_three_institutions_learn_and_transformers_loads_what_came_of_it(example: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = example.make_base.prepare(tmp_path / "base", steps=60)
    result = example.trained(base, example.prepare(tmp_path / "stores", base), 40)
    assert result.task.parameters == 2 * (5 * 64 + 2 * 128) * 8  # B of seven layers in each of two blocks
    assert result.metrics["bits_per_byte"] < 0.9 * result.rounds["bits_per_byte"].iloc[0]
    assert (result.rounds["ring_error"] < 0.2).all()
    folder = tmp_path / "merged"
    to_hugging_face(load_model(result.folder), folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)  # to evaluate, as it comes
    windows = torch.randint(0, 400, (2, example.CONTEXT + 1))
    with torch.no_grad():
        own = result.model(windows)
        scores = loaded(input_ids=windows[:, :-1]).logits.log_softmax(-1)
        torch.testing.assert_close(scores.gather(2, windows[:, 1:, None])[..., 0], own, atol=1e-4, rtol=1e-4)
    text = "第12条 医師を定める。"
    assert (
        AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
        == read_tokenizer(base / "tokenizer.json").encode([text])[0]
    )
    assert not [path for path in folder.iterdir() if str(tmp_path).encode() in path.read_bytes()]


def test_several_institutions_with_the_same_texts_learn_what_one_alone_does(example: Any, tmp_path: Path) -> None:
    """Several local steps, averaged: of LoRA with both matrices trained the products would differ."""
    base = example.make_base.prepare(tmp_path / "base", steps=5)
    east = example.prepare(tmp_path / "stores", base) / "east"
    settings = {
        "strategy": "fedavg", "secagg": "none", "server.min_cohort": 1, "task.local_steps": 3, "task.batch_size": 10_000
    }  # fmt: skip
    learnt = []
    for names in (("one",), ("one", "two", "three")):
        stores = tmp_path / f"of-{len(names)}"
        for name in names:
            shutil.copytree(east, stores / name)
        learnt.append(example.trained(base, stores, 2, **settings).vector)
    np.testing.assert_allclose(learnt[0], learnt[1], rtol=1e-4, atol=1e-6)
    assert np.abs(learnt[0]).max() > 1e-3
