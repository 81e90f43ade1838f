"""What stands literally in training text: found to the letter, told by token, and every bit is counted once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.clients.cli.model import model
from sovfed.clients.data.token_store import HELD_OUT, Document, Rules, Store, write_store
from sovfed.clients.data.tokens import Windows, load
from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import Policy
from sovfed.clients.models import passages
from sovfed.clients.models.passages import (
    PASSAGE,
    apart,
    copied_apart,
    copied_tokens,
    hashed,
    nats_by_group,
    standing,
    text_of,
)
from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.models.facts import RunFacts, facts_of
from sovfed.federation.tasks import Task, summarise
from sovfed.federation.tasks.declared import task_from_text
from sovfed.federation.tasks.registry import add
from sovfed.federation.tasks.tokenizer import Tokenizer, read_tokenizer, train_tokenizer

pytest.importorskip("tokenizers")
SHARED = "この法律は、公布の日から起算して六月を超えない範囲内において施行する。"
OLD = f"第一条 {SHARED}\nEs gilt das Gesetz über Steuern 𝕏.\n"
NEW = f"Neu und anders: ganz eigene Worte („{SHARED}“) und wieder nichts davon."


def by_search(text: str, training: list[str]) -> list[bool]:
    """As the definition has it, by looking for every passage in every text."""
    flags = [False] * len(text)
    for begin in range(len(text) - PASSAGE + 1):
        if any(text[begin : begin + PASSAGE] in other for other in training):
            flags[begin : begin + PASSAGE] = [True] * PASSAGE
    return flags


def test_passages_are_those_that_a_search_finds() -> None:
    generator = np.random.default_rng(3)
    training = ["".join(generator.choice(list("ab第"), 400)), OLD, "short", "x" * 30]
    held_out = [NEW, training[0][50:90] + "q" + training[0][200:230], "x" * 24, "x" * 23, "", OLD[:23], OLD[4:29], OLD]
    for text, flags in standing(held_out, lambda: training):
        assert flags.tolist() == by_search(text, training), text
    assert sum(by_search(NEW, training)) == len(SHARED)


def test_many_held_out_texts_are_looked_for_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = []

    def training() -> list[str]:
        turns.append(1)
        return [OLD]

    whole = [flags.tolist() for _, flags in standing([NEW, OLD, NEW], training)]
    monkeypatch.setattr(passages, "AT_ONCE", len(NEW) + 1)
    assert [flags.tolist() for _, flags in standing([NEW, OLD, NEW], training)] == whole
    assert len(turns) == 1 + 3


def test_a_hash_is_the_polynomial_of_code_points() -> None:
    expected = 0
    for character in NEW[5 : 5 + PASSAGE]:
        expected = (expected * 0x9E3779B97F4A7C15 + ord(character)) % 2**64
    assert int(hashed(NEW)[5]) == expected and len(hashed(NEW)) == len(NEW) - PASSAGE + 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(train_tokenizer([OLD * 3, NEW], 290))
    return read_tokenizer(path)


@pytest.fixture(scope="module")
def task(tokenizer: Tokenizer) -> Task:
    return task_from_text(
        "name: t_passages\ntitle: Law\nperson: document\n"
        "columns: {window: {kind: tokens, shape: [17], high: 289}}\n"
        f'target: {{kind: next_token, tokenizer: "{tokenizer.sha256}"}}\n'
        "model: {family: decoder, width: 16, blocks: 1, heads: 2, hidden: 32}\n"
    )


def windows_of(folder: Path, task: Task, tokenizer: Tokenizer, name: str, texts: dict[str, str]) -> Windows:
    documents = [Document(text[:4], text, side=side) for text, side in texts.items()]
    write_store(folder / name, documents, tokenizer, Rules())
    return load(task, DataConfig(source="tokens", path=str(folder), site=name))


def copied_text(tokenizer: Tokenizer, store: Store, document: int, flags: np.ndarray) -> str:
    places = np.arange(store.starts[document] + 1, store.starts[document + 1])
    return tokenizer.decode(store.tokens[places[flags[places]]].tolist()).decode("utf-8", "ignore")


def test_tokens_are_copied_from_any_of_the_stores(task: Task, tokenizer: Tokenizer, tmp_path: Path) -> None:
    own = windows_of(tmp_path, task, tokenizer, "own", {NEW: "test", "Nur hier.": "train", OLD + "x": "valid"}).store
    other = windows_of(tmp_path, task, tokenizer, "other", {OLD: "train"}).store
    held_out = np.flatnonzero(own.sides == HELD_OUT)
    assert text_of(tokenizer, own, int(held_out[0])) == NEW
    (alone,) = copied_tokens(tokenizer, [(own, held_out)], [own])
    (everywhere,) = copied_tokens(tokenizer, [(own, held_out)], [own, other])
    assert not alone.any()
    told = copied_text(tokenizer, own, int(held_out[0]), everywhere)
    assert told in SHARED and len(told) > len(SHARED) - 6  # tokens at its ends may reach beyond it


def test_bits_of_copied_and_new_text_are_the_bits_of_all_of_it(
    task: Task, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    windows = windows_of(tmp_path, task, tokenizer, "own", {NEW: "test", OLD: "train", NEW[:9] * 9: "test"})
    training = LocalTraining(task, windows, site="", device="cpu")
    vector = np.random.default_rng(0).normal(0, 0.5, task.parameters).astype(np.float32)
    scale = task.transform.public_scale
    told = copied_apart(training, windows, tokenizer, vector, scale)
    assert told.copied is not None and told.new is not None
    assert len(SHARED) * 3 * 0.8 < told.copied_share * len((NEW + NEW[:9] * 9).encode()) <= len(SHARED) * 3
    whole = summarise(task, training.evaluate(vector, scale), scale)["bits_per_byte"]
    assert told.copied_share * told.copied + (1 - told.copied_share) * told.new == pytest.approx(whole, rel=1e-5)


def test_nothing_is_said_of_what_there_is_not(task: Task, tokenizer: Tokenizer, tmp_path: Path) -> None:
    only_new = apart(np.array([[2.0, 1.0], [0.0, 0.0]]))
    assert only_new.copied is None and only_new.new == pytest.approx(2 / np.log(2)) and only_new.copied_share == 0.0
    windows = windows_of(tmp_path, task, tokenizer, "own", {NEW: "test", OLD: "train"})
    training = LocalTraining(task, windows, site="", device="cpu")
    left_out = np.full(len(windows.store.tokens), -1)
    vector = np.zeros(task.parameters, np.float32)
    assert not nats_by_group(training, windows, vector, task.transform.public_scale, left_out, 2).any()


def test_the_command_tells_copied_text_apart_at_home(task: Task, tokenizer: Tokenizer, tmp_path: Path) -> None:
    windows = windows_of(tmp_path, task, tokenizer, "store", {NEW: "test", OLD: "train"})
    (tmp_path / "tokenizer.json").write_bytes(train_tokenizer([OLD * 3, NEW], 290))
    home, scale = tmp_path / "home", task.transform.public_scale
    data = DataConfig(source="tokens", path=str(tmp_path / "store"), site="store")
    create(home, ClientConfig(device="cpu", data=data), Policy(allowed_tasks=(add(task).name,)))
    vector = np.random.default_rng(0).normal(0, 0.5, task.parameters).astype(np.float32)
    run = RunFacts("law-1", 1)
    ReceivedModels(home / "received").keep(task, vector, facts_of(task, scale, run), owner="7", plan={})
    asked = ["evaluate", "law-1", "--no-alone", "--home", str(home), "--tokenizer", str(tmp_path / "tokenizer.json")]
    said = json.loads(CliRunner().invoke(model, [*asked, "--json"], catch_exceptions=False).stdout)
    training = LocalTraining(task, windows, site="", device="cpu")
    assert said["passages"] == pytest.approx(vars(copied_apart(training, windows, tokenizer, vector, scale)))
    shown = CliRunner().invoke(model, asked, catch_exceptions=False).stdout
    assert "of the held-out text stands in the own training text; bits per byte there" in shown
    other = tmp_path / "other.json"
    other.write_bytes(train_tokenizer([OLD * 3], 280))
    with pytest.raises(ConfigError, match="SHA-256"):
        CliRunner().invoke(model, [*asked[:-1], str(other)], catch_exceptions=False)
