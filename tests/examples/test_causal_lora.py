"""A causal language model by Hugging Face with LoRA: what travels, that it learns, and that transformers loads it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.tokenizer import read_tokenizer

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")
FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield importlib.import_module("causal_lora.run")


@pytest.fixture(scope="module")
def base(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = example.make_base.prepare(tmp_path_factory.mktemp("causal") / "base", steps=60)
    return folder


@pytest.fixture(scope="module")
def stores(example: Any, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = example.prepare(tmp_path_factory.mktemp("stores"), base)
    return folder


def test_three_institutions_learn_and_transformers_loads_what_came_of_it(
    example: Any, base: Path, stores: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = example.trained(base, stores, 40)
    assert result.task.parameters == 2 * (5 * 64 + 2 * 128) * 8  # B of seven layers in each of two blocks
    assert result.metrics["bits_per_byte"] < 0.9 * result.rounds["bits_per_byte"].iloc[0]
    assert (result.rounds["ring_error"] < 0.2).all()
    folder = example.export(result, base, tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)  # to evaluate, as it comes
    windows = torch.randint(0, 400, (2, example.adapted(base).model.config.max_position_embeddings // 4 + 1))
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


def test_the_mean_of_what_institutions_send_is_the_mean_of_what_they_learnt(example: Any, base: Path) -> None:
    """Of LoRA with both matrices trained it is not: the mean of A times the mean of B is another product."""
    layers = [layer for layer in example.adapted(base).modules() if isinstance(layer, example.LoRA)]
    again = [layer for layer in example.adapted(base).modules() if isinstance(layer, example.LoRA)]
    x, sent = torch.randn(3, 64), [torch.randn_like(layers[0].b) for _ in range(3)]
    learnt = []
    for layer, b in zip((layers[0], again[0], layers[0]), sent, strict=True):
        layer.b.data = b
        learnt.append(layer(x).detach())
    layers[0].b.data = torch.stack(sent).mean(0)
    torch.testing.assert_close(layers[0](x).detach(), torch.stack(learnt).mean(0), atol=1e-5, rtol=1e-5)


def test_another_base_is_another_task(example: Any, base: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    other = Path(shutil.copytree(base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    name = min(tensors)
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert example.task_of(other).digest != example.task_of(base).digest
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    with pytest.raises((OSError, ConfigError)):
        example.adapted(other)
