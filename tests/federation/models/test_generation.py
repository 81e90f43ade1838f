"""Text from a language model: whole characters, the same for the same seed, and none of what is too unlikely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sovfed.cli import cli
from sovfed.federation.errors import ConfigError
from sovfed.federation.models import generation
from sovfed.federation.models.card import to_html
from sovfed.federation.models.facts import RunFacts
from sovfed.federation.models.saved import load_model, read_facts, save_model
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.decoder import Decoder
from sovfed.federation.tasks.tokenizer import Tokenizer, read_tokenizer, train_tokenizer
from sovfed.server.runs.ending import ending

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(train_tokenizer(["法律 第一条 Recht " * 20], 270))
    return path


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Tokenizer:
    return read_tokenizer(file)


@pytest.fixture(scope="module")
def task(tokenizer: Tokenizer) -> DeclaredTask:
    return task_from_text(
        "name: law\ntitle: Law\nperson: document\n"
        "columns: {window: {kind: tokens, shape: [9], high: 269}}\n"
        f'target: {{kind: next_token, tokenizer: "{tokenizer.sha256}"}}\n'
        "model: {family: decoder, width: 16, blocks: 1, heads: 2, hidden: 32}\n"
    )


@pytest.fixture(scope="module")
def folder(task: DeclaredTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    vector = np.random.default_rng(0).normal(0, 0.5, task.parameters).astype(np.float32)
    save_model(path, task, vector, task.transform.public_scale, RunFacts("law-1", 1))
    return path


def text(folder: Path, tokenizer: Tokenizer, **settings: Any) -> str:
    return "".join(generation.continued(load_model(folder), tokenizer, "第一", generation.Drawing(**settings)))


def test_equal_seeds_write_equal_texts_and_only_whole_characters(folder: Path, tokenizer: Tokenizer) -> None:
    first = text(folder, tokenizer, tokens=60, temperature=1.5)
    assert first == text(folder, tokenizer, tokens=60, temperature=1.5) != text(folder, tokenizer, tokens=60, seed=1)
    first.encode()
    assert text(folder, tokenizer, temperature=0.0, tokens=5) == text(
        folder, tokenizer, temperature=0.0, seed=9, tokens=5
    )


def test_the_unlikely_tail_is_never_drawn() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = [generation._drawn(scores, generation.Drawing(temperature=1.0, top_p=0.7), generator) for _ in range(300)]
    assert set(drawn) == {0, 1} and 0.5 < drawn.count(0) / 300 < 0.75
    assert generation._drawn(scores, generation.Drawing(top_p=0.0), generator) == 0


def test_the_command_writes_no_character_that_steers_a_terminal(folder: Path, file: Path) -> None:
    words = [
        "generate",
        str(folder),
        "--tokenizer",
        str(file),
        "--prompt",
        "a\x1b[2J",
        "--tokens",
        "80",
        "--temperature",
        "3",
    ]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("a\\x1b[2J") and "\x1b" not in result.output


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_bytes(train_tokenizer(["other words " * 20], 262))
    with pytest.raises(ConfigError, match="no language model"):
        next(generation.continued(load_model(folder), read_tokenizer(other), "", generation.Drawing()))


def test_the_likelihood_of_a_text_is_the_models_own_whatever_stands_beside_it(
    folder: Path, tokenizer: Tokenizer
) -> None:
    module = load_model(folder).module.eval()
    assert isinstance(module, Decoder)
    texts = ["第", "法律", "", "第一条"]
    for text_, score in zip(texts, generation.log_p(module, tokenizer, texts), strict=True):
        codes = [tokenizer.document, *tokenizer.encode([text_])[0]]
        told = [
            float(module.scores(torch.tensor([codes[:end]])).log_softmax(-1)[0, codes[end]].detach())
            for end in range(1, len(codes))
        ]
        assert score == pytest.approx(sum(told), rel=1e-4)
    with pytest.raises(ConfigError, match="sees 8"):
        generation.log_p(module, tokenizer, ["xyz" * 8])


def test_a_language_model_is_said_to_write_not_to_predict_rows(folder: Path, tmp_path: Path) -> None:
    """On its card, by `model show`, at the end of a run, and where somebody has it predict a table."""
    command = f"sovfed generate {folder} --tokenizer TOKENIZER.json"
    assert ending({"metrics": {}}, folder, str(folder))[-1] == f"next: {command}"
    assert f"next: {command}" in CliRunner().invoke(cli, ["model", "show", str(folder)]).output
    (tmp_path / "rows.csv").write_text("window\n1\n")
    told = CliRunner().invoke(cli, ["model", "predict", str(folder), str(tmp_path / "rows.csv")])
    assert isinstance(told.exception, ConfigError) and command in str(told.exception)
    page = to_html(read_facts(folder), "0" * 64)
    assert "sovfed generate model.safetensors --tokenizer" in page and "model predict" not in page
