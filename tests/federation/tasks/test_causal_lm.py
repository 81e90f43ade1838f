"""Models of Hugging Face as tasks: the base by its digest, adapters that may be averaged, and one institution alone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sovfed.clients.node.sandbox import _rules
from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError
from sovfed.federation.host.landlock import READ
from sovfed.federation.models.generation import Writer
from sovfed.federation.tasks import bases
from sovfed.federation.tasks.causal_lm import CausalLM, LoRA, load
from sovfed.federation.tasks.conformance import conform
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.shelf import Shelf
from sovfed.federation.tasks.sizes import parameters_of
from sovfed.server.rounds.checkpoint import config_digest

pytest.importorskip("transformers")
SYMBOLS, CONTEXT = 60, 12
TEXT = """name: words
title: Words
person: document
columns:
  window: {{kind: tokens, shape: [13], high: 59}}
target: {{kind: next_token, tokenizer: "{tokenizer}"}}
model: {{family: causal_lm, base: "{base}", {more}}}
"""
SIZES: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "vocab_size": SYMBOLS + 4,
}  # fmt: skip


def made(kind: str, folder: Path) -> Path:
    """A small model of one of Hugging Face's kinds, with dropout, in `folder`."""
    import transformers

    library: Any = transformers
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": SYMBOLS + 4}
    model = {
        "llama": lambda: library.LlamaForCausalLM(library.LlamaConfig(**SIZES)),
        "qwen2": lambda: library.Qwen2ForCausalLM(library.Qwen2Config(**SIZES, tie_word_embeddings=True)),
        "gpt2": lambda: library.GPT2LMHeadModel(library.GPT2Config(**sizes)),
    }[kind]()
    model.save_pretrained(folder)
    return folder


def configured(base: Path, **changes: Any) -> None:
    """Change the configuration in `base`."""
    told = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**told, **changes}))


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No base is offered but by the test."""
    monkeypatch.setattr(bases, "_OFFERED", {})


def task(base: Path, more: str = "rank: 4") -> DeclaredTask:
    bases.offer(base)
    return task_from_text(TEXT.format(tokenizer="5e" * 32, base=bases.digest_of(base), more=more))


def windows(count: int = 3) -> torch.Tensor:
    return torch.randint(0, SYMBOLS, (count, CONTEXT + 1), generator=torch.Generator().manual_seed(2))


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """With adapters that change something."""
    torch.manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, LoRA):
            layer.b.data.normal_(std=0.3)
    return module


def test_every_promise_of_a_task_holds_and_a_record_stands_alone(base: Path) -> None:
    """As for any task: private runs need a gradient for each record."""
    assert [outcome.what for outcome in conform(task(base)) if not outcome.held] == []


def test_no_token_is_seen_before_its_turn_and_training_has_no_dropout(base: Path) -> None:
    module, changed = lively(task(base).model()).train(), windows()
    changed[:, 6:] = (changed[:, 6:] + 1) % SYMBOLS
    before, after = module(windows()), module(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    torch.testing.assert_close(before, module(windows()))
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_the_scores_of_the_next_token_are_those_that_it_was_trained_by(base: Path) -> None:
    module = lively(task(base).model())
    assert isinstance(module, Writer) and module.context == CONTEXT
    window = windows(1)
    told = module.scores(window[:, :-1]).log_softmax(-1)[0, window[0, -1]]
    torch.testing.assert_close(told, module(window)[0, -1])


def test_merged_it_is_the_same_model_without_adapters(base: Path) -> None:
    module = lively(task(base).model())
    assert isinstance(module, CausalLM)
    before = module(windows()).detach()
    merged = module.merged()
    assert not [layer for layer in merged.modules() if isinstance(layer, LoRA)]
    torch.testing.assert_close(module(windows()).detach(), before, atol=1e-5, rtol=1e-5)


def test_the_mean_of_what_institutions_send_is_the_mean_of_what_they_learnt(base: Path) -> None:
    """Of LoRA with both matrices trained it is not: the mean of A times the mean of B is another product."""
    first = next(layer for layer in task(base).model().modules() if isinstance(layer, LoRA))
    x, sent = torch.randn(3, first.a.shape[1]), [torch.randn_like(first.b) for _ in range(3)]
    learnt = []
    for b in sent:
        first.b.data = b
        learnt.append(first(x).detach())
    first.b.data = torch.stack(sent).mean(0)
    torch.testing.assert_close(first(x).detach(), torch.stack(learnt).mean(0), atol=1e-5, rtol=1e-5)


def test_only_what_is_trained_travels_and_is_written(base: Path) -> None:
    found = task(base)
    state = found.model().state_dict()
    assert sorted(state) == sorted(part.name for part in found.layout.parts)
    assert all(name.endswith(".b") for name in state)
    assert found.build is not None and parameters_of(found.build) == found.parameters
    whole = task(base, "rank: 0")
    assert whole.parameters > 5 * found.parameters
    assert any(name.startswith("model.") for name in whole.model().state_dict())


def test_chosen_layers_alone_have_adapters(tmp_path: Path) -> None:
    base = made("llama", tmp_path / "base")
    chosen = task(base, "rank: 2, layers: [q_proj, v_proj]")
    assert {part.name.split(".")[-2] for part in chosen.layout.parts} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match=r"'model.layers' holds 'q_prog' \(did you mean 'q_proj'\?"):
        _ = task(base, "rank: 2, layers: [q_prog]").digest


def test_a_base_is_found_by_its_digest_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = made("llama", tmp_path / "base")
    digest = task(base).digest
    moved = Path(shutil.move(base, tmp_path / "elsewhere"))
    monkeypatch.setattr(bases, "_OFFERED", {})
    text = TEXT.format(tokenizer="5e" * 32, base=bases.digest_of(moved), more="rank: 4")
    with pytest.raises(ConfigError, match=r"is not here \(none is\): say where its folder is, by task.base=FOLDER"):
        _ = task_from_text(text).digest
    monkeypatch.setenv(bases.VARIABLE, os.pathsep.join([str(tmp_path / "none"), str(moved)]))
    assert task_from_text(text).digest == digest


def test_a_home_keeps_where_the_base_of_its_task_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whoever reads its tasks later, and for the trainer's seal: also where weights are links into a store."""
    base = made("llama", tmp_path / "store")
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in base.iterdir():
        (linked / file.name).symlink_to(file)
    found, home = task(linked), tmp_path / "home"
    home.mkdir(0o700)
    (tmp_path / "words.yaml").write_text(found.text)
    Shelf(home).put(tmp_path / "words.yaml")
    monkeypatch.setattr(bases, "_OFFERED", {})
    assert [kept.digest for kept in Shelf(home).tasks()] == [found.digest]
    read = {rule.path for rule in _rules("trainer", home, (), ()) if rule.rights == READ}
    assert {linked, base / "model.safetensors", base / "config.json"} <= read


def test_other_weights_or_another_configuration_are_another_base(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base = made("llama", tmp_path / "base")
    told = bases.digest_of(base)
    other = Path(shutil.copytree(base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    name = min(tensors)
    tensors[name] = tensors[name] + np.float32(1e-3)
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert bases.digest_of(other) != told
    third = Path(shutil.copytree(base, tmp_path / "third"))
    config = json.loads((third / "config.json").read_text())
    (third / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert bases.digest_of(third) != told
    bases.offer(other)
    bases.offer(third)
    with pytest.raises(ConfigError, match=r"other is .*third is "):
        bases.find(told)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "no weights as safetensors"),
        (lambda base: (base / "config.json").unlink(), "no config.json"),
        (lambda base: (base / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "x.Y"}}'),
         "no causal language model that can be read"),
        (lambda base: (base / "model.safetensors").write_bytes(b"\x08"), "no causal language model that can be read"),
        (lambda base: configured(base, num_hidden_layers=10**7), "10000000 layers, at most 1000"),
        (lambda base: configured(base, num_hidden_layers=3), r"weights lack model.layers.2.*would be made up"),
        (lambda base: configured(base, hidden_size=10**9), "no causal language model that can be read"),
    ],
)  # fmt: skip
def test_what_is_no_model_or_wants_to_run_code_is_refused_in_words(tmp_path: Path, spoil: Any, told: str) -> None:
    base = made("llama", tmp_path / "base")
    spoil(base)
    with pytest.raises(ConfigError, match=told):
        load(base, CONTEXT, SYMBOLS, 4, 2.0, ()) if bases.digest_of(base) else None


def test_a_vocabulary_or_a_window_that_it_has_not_is_refused(tmp_path: Path) -> None:
    base = made("llama", tmp_path / "base")
    with pytest.raises(ConfigError, match="a model of 64 tokens, the tokenizer has 65"):
        load(base, CONTEXT, 65, 4, 2.0, ())
    with pytest.raises(ConfigError, match="the model sees 64 tokens, the task's windows have 65"):
        load(base, 65, SYMBOLS, 4, 2.0, ())


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ('{family: causal_lm, base: "12"}', "base is '12', expected the 64 digits"),
        ('{family: causal_lm, base: "' + "ab" * 32 + '", personal: head}', "nothing stays at one institution"),
    ],
)
def test_a_file_says_what_is_wrong_with_it(model: str, told: str) -> None:
    text = TEXT.format(tokenizer="5e" * 32, base="{}", more="").partition("model: ")[0]
    with pytest.raises(ConfigError, match=told):
        task_from_text(f"{text}model: {model}\n")


def test_where_a_base_lies_is_whole_and_no_part_of_what_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on once its base was moved; the digest of the task holds what counts."""
    made("llama", tmp_path / "base")
    (tmp_path / "words.yaml").write_text(task(tmp_path / "base").text)
    shutil.copytree(tmp_path / "base", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    here, there = (compose([f"task={tmp_path}/words.yaml", f"task.base={name}"]).config for name in ("base", "moved"))
    assert here.task.base == str(tmp_path / "base")
    assert config_digest(here) == config_digest(there)
