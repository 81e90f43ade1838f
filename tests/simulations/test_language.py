"""With the optimizer at the server a federated language model is the pooled one; a ring too coarse is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sovfed.clients.data.token_store import Document, Rules, write_store
from sovfed.clients.data.tokens import Windows, load
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError, TrainingError
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.tokenizer import read_tokenizer, train_tokenizer
from sovfed.simulations.api import Result, simulate
from sovfed.simulations.baselines import merge

pytest.importorskip("tokenizers")
SITES = ("mof", "moj", "mext")
TEXTS = [f"第{number}条 この法律は、平成{number}年{number % 7}月から施行する。\n" for number in range(60)]
RECIPE = {
    "strategy": "fedsgd", "task.optimizer": "muon", "task.learning_rate": 0.02, "task.gradient_clip": 1.0,
    "task.schedule": "wsd", "task.warmup": 0.1, "task.cooldown": 0.4, "task.batch_size": 10_000, "client": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[DeclaredTask, dict[str, Windows]]:
    """A task and three ministries' windows, of unequal number."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "tokenizer.json").write_bytes(train_tokenizer(TEXTS, 300))
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    task = task_from_text(
        "name: law\ntitle: Law\nperson: document\n"
        "columns: {window: {kind: tokens, shape: [17], high: 299}}\n"
        f'target: {{kind: next_token, tokenizer: "{tokenizer.sha256}"}}\n'
        "model: {family: decoder, width: 16, blocks: 1, heads: 2, hidden: 32}\n"
    )
    for number, site in enumerate(SITES):
        own = TEXTS[20 * number : 20 * number + 8 + 4 * number]
        documents = [Document(str(row), text, side="test" if row < 2 else "train") for row, text in enumerate(own)]
        write_store(folder / site, documents, tokenizer, Rules())
    config = {site: DataConfig(source="tokens", path=str(folder), site=site) for site in SITES}
    return task, {site: load(task, config[site]) for site in SITES}


def trained(task: DeclaredTask, sites: dict[str, Any], folder: Path, *, rounds: int = 8, **settings: Any) -> Result:
    return simulate(task, sites, rounds=rounds, settings=RECIPE | settings, folder=folder)


def test_with_the_optimizer_at_the_server_the_federated_model_is_the_pooled_one(
    made: tuple[DeclaredTask, dict[str, Windows]], tmp_path: Path
) -> None:
    task, sites = made
    pooled = trained(task, {"all": merge(list(sites.values()))}, tmp_path / "pooled", secagg="none")
    federated = trained(task, dict(sites), tmp_path / "federated", secagg="full", **{"secagg.max_weight": 1_000})
    start = pooled.task.layout.vector(task.model(0))
    moved = np.linalg.norm(pooled.vector - start)
    assert np.linalg.norm(federated.vector - pooled.vector) < 0.01 * moved
    assert federated.metrics["bits_per_byte"] == pytest.approx(pooled.metrics["bits_per_byte"], rel=1e-3)
    first = trained(task, dict(sites), tmp_path / "one", rounds=1, secagg="none")
    assert federated.metrics["bits_per_byte"] < 0.9 * first.metrics["bits_per_byte"]
    errors = federated.rounds["ring_error"]
    assert (errors > 0).all() and (errors < 0.01).all()
    assert federated.summary["secure_aggregation_terms"]["rounding"] == errors.iloc[-1]


def test_stores_that_are_wrong_are_told_without_a_word_about_tables(
    made: tuple[DeclaredTask, dict[str, Windows]], tmp_path: Path
) -> None:
    task, sites = made
    folder = sites["mof"].store.tokens.filename.parent.parent  # type: ignore[attr-defined]
    for site in SITES:
        shutil.copytree(folder / site, tmp_path / "stores" / site)
        (tmp_path / "stores" / site / "store.json").write_text("{}")
    with pytest.raises(DataError, match="3 of 3 institutions") as refused:
        simulate(task, tmp_path / "stores", rounds=1, settings=RECIPE, folder=tmp_path / "run")
    assert str(refused.value).count("no token store") == 3 and "yaml" not in str(refused.value)


def test_a_ring_that_would_drown_the_update_is_refused_in_the_first_round(
    made: tuple[DeclaredTask, dict[str, Windows]], tmp_path: Path
) -> None:
    task, sites = made
    drowning: dict[str, Any] = {"secagg": "compact", "secagg.max_weight": 100_000}
    with pytest.raises(TrainingError, match=r"rounding is \d+% of the mean update of round 1.*Take secagg\.bits=32"):
        trained(task, dict(sites), tmp_path / "refused", **drowning)
    fitting: dict[str, Any] = drowning | {"secagg.clip": 0.3, "secagg.max_weight": 1_000, "secagg.max_error": 0.5}
    kept = trained(task, dict(sites), tmp_path / "kept", **fitting)
    assert float(kept.rounds["ring_error"].iloc[0]) < 0.5


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_in_units_of_the_rates_sixteen_bits_hold_the_updates_of_local_steps(
    made: tuple[DeclaredTask, dict[str, Windows]], tmp_path: Path, optimizer: str
) -> None:
    """How far learning rates let a value move is known to everybody before any text is read."""
    task, sites = made
    local: dict[str, Any] = {
        "strategy": "fedavg", "task.optimizer": optimizer, "task.local_steps": 5, "task.batch_size": 4,
        "task.learning_rate": 0.004, "secagg.max_weight": 1_000, "secagg.max_error": 100.0,
    }  # fmt: skip
    fitting: dict[str, Any] = {"secagg": "compact", "strategy.rate_units": True}
    wide, plain, fitted = (
        trained(task, dict(sites), tmp_path / name, rounds=4, **{**local, **settings})
        for name, settings in {
            "wide": {"secagg": "full"}, "plain": {"secagg": "compact"}, "fitted": fitting,
        }.items()
    )  # fmt: skip
    assert (fitted.rounds["ring_error"] < 0.1 * plain.rounds["ring_error"]).all()
    assert (fitted.rounds["ring_error"] < 0.05).all()  # with windows of the thousand that count, less
    near = {"adamw": 0.003, "muon": 0.05}[optimizer]  # Muon makes what rounding stirs up as long as what it learns
    assert fitted.metrics["bits_per_byte"] == pytest.approx(wide.metrics["bits_per_byte"], rel=near)


@pytest.mark.parametrize(("engine", "optimizer"), [("inprocess", "muon"), ("vectorised", "adamw")])
def test_units_of_the_rates_change_nothing_but_what_travels(engine: str, optimizer: str, tmp_path: Path) -> None:
    settings = {
        "task.optimizer": optimizer, "task.local_steps": 4, "task.learning_rate": 0.01, "task.schedule": "cosine",
        "secagg": "none", "client": "cpu", "simulation.engine": engine, "strategy": "fedavgm",
    }  # fmt: skip
    models = [
        simulate(
            "breast_cancer", rounds=3, settings=settings | {"strategy.rate_units": units}, folder=tmp_path / str(units)
        )
        for units in (False, True)
    ]
    np.testing.assert_allclose(models[1].vector, models[0].vector, atol=1e-6)
    assert np.abs(models[0].vector).max() > 0.01
