"""A run that trains a model further begins with that model and its scale, and with no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, DataError
from sovfed.server.rounds.checkpoint import config_digest
from sovfed.simulations.api import Result, simulate

STEPS = {"client": "cpu", "secagg": "none"}


def trained(folder: Path, task: str = "breast_cancer", rounds: int = 3, **settings: Any) -> Result:
    return simulate(task, rounds=rounds, settings=STEPS | settings, folder=folder)


def test_a_run_goes_on_where_the_model_it_is_given_ended(tmp_path: Path) -> None:
    first = trained(tmp_path / "first")
    second = trained(tmp_path / "second", rounds=2, start=str(tmp_path / "first"))
    whole = trained(tmp_path / "whole", rounds=5)
    np.testing.assert_array_equal(second.scale, first.scale)
    np.testing.assert_allclose(second.vector, whole.vector, atol=0.05 * np.abs(whole.vector).max())  # other shuffles
    assert second.rounds["auc"].iloc[0] == pytest.approx(first.metrics["auc"])  # what its first round evaluates
    assert second.summary["started_from_sha256"] == first.summary["model_sha256"]
    assert "started_from_sha256" not in first.summary


def test_a_private_run_says_that_its_promise_is_not_of_what_it_began_with(tmp_path: Path) -> None:
    private: dict[str, Any] = {
        "privacy": "distributed",
        "secagg": "full",
        "privacy.epsilon": 20,
        "privacy.population": 400,
    }
    first = trained(tmp_path / "first", **private)
    trained(tmp_path / "second", start=str(tmp_path / "first" / "model.safetensors"), **private)
    statement = json.loads((tmp_path / "second" / "privacy.json").read_text())
    assert f"further from one with SHA-256 {first.summary['model_sha256']}, of which this says nothing" in str(
        statement
    )
    trained(tmp_path / "third")
    with pytest.raises(ConfigError, match="scaled by what its own run measured"):
        trained(tmp_path / "fourth", start=str(tmp_path / "third"), **private)


def test_what_is_no_start_for_the_task_is_refused(tmp_path: Path) -> None:
    trained(tmp_path / "digits", "digits", 1)
    with pytest.raises(ConfigError, match="no start for task 'breast_cancer': its columns, its tensors"):
        trained(tmp_path / "run", start=str(tmp_path / "digits"))
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "digits" / "model.safetensors").read_bytes()[:300])
    with pytest.raises(DataError):
        trained(tmp_path / "torn", start=str(tmp_path / "torn.safetensors"))
    with pytest.raises(ConfigError, match="trains none"):
        compose(["start=x", "statistics=all"])


def test_where_the_files_of_a_run_lie_makes_it_no_other_run(tmp_path: Path) -> None:
    """A run that is made anew without those who withdrew goes on with the first one's checkpoint, in another folder."""
    text = (
        "name: t_place\ntitle: Place\nperson: row\n"
        "columns: {age: {kind: number, low: 0, high: 120}}\n"
        "target: {kind: binary, column: ill, classes: [well, ill]}\nmodel: {family: linear}\n"
    )
    digests = set()
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "task.yaml").write_text(text)
        digests.add(config_digest(compose([f"task={tmp_path / place / 'task.yaml'}", f"start={place}"]).config))
    assert len(digests) == 1


def test_a_run_with_a_running_average_ends_with_that(tmp_path: Path) -> None:
    """Of the same rounds: the average changes none of them."""
    ema: dict[str, Any] = {"strategy.ema": 0.5}
    last, averaged = trained(tmp_path / "a", rounds=4), trained(tmp_path / "b", rounds=4, **ema)
    np.testing.assert_array_equal(averaged.rounds["train_loss"], last.rounds["train_loss"])
    assert not np.allclose(averaged.vector, last.vector)
    earlier = trained(tmp_path / "c", rounds=3)
    distance = np.linalg.norm(last.vector - earlier.vector)
    assert 0.1 * distance < np.linalg.norm(averaged.vector - last.vector) < 3 * distance
