"""Strategies that change local training, through the whole federation: with the secure sum, resumed, and refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sovfed.federation.algorithms import LOCAL
from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.coordinator import Outcome
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import make_population


def run(folder: Path, *overrides: str, **more: Any) -> Outcome:
    config = compose(
        ["task=digits_cnn", "rounds=3", "partition=dirichlet", "simulation.institutions=5",
         "simulation.engine=inprocess", *overrides]
    ).config  # fmt: skip
    return simulate_population(config, make_population(config), folder, **more)


@pytest.mark.parametrize("strategy", [name for name in LOCAL if name not in ("sgd", "fedper")])
def test_the_secure_sum_gives_the_model_of_the_plain_one(strategy: str, tmp_path: Path) -> None:
    """After one round: training amplifies the rounding of the ring from then on, through ReLU and BatchNorm.

    Running statistics of 0 and 1 travel in units of 8, and so does their rounding.
    """
    secure, plain = (
        run(tmp_path / name, f"strategy={strategy}", f"secagg={name}", "rounds=1") for name in ("full", "none")
    )
    assert secure.summary["secure_aggregation"] and not plain.summary["secure_aggregation"]
    steps = 10 if strategy == "fednova" else 1  # by which FedNova multiplies the mean, and so its rounding
    trained = get_task("digits_cnn").layout.trained
    np.testing.assert_allclose(secure.model[:trained], plain.model[:trained], atol=1e-6 * steps)
    np.testing.assert_allclose(secure.model[trained:], plain.model[trained:], atol=8e-6 * steps)
    assert secure.summary["metrics"] == pytest.approx(plain.summary["metrics"], abs=1e-4)


@pytest.mark.parametrize("strategy", [name for name in LOCAL if name not in ("sgd", "fedper")])
def test_a_run_set_back_by_a_crash_ends_with_the_same_bytes(strategy: str, tmp_path: Path) -> None:
    """The coordinator died after the institutions had finished round 3, and before its checkpoint of it was written."""
    overrides = (f"strategy={strategy}", "secagg=none")
    whole = run(tmp_path / "a" / "run", *overrides)
    run(tmp_path / "b" / "run", *overrides, "rounds=2")
    checkpoint = tmp_path / "b" / "run" / "checkpoint.safetensors"
    shutil.copy(checkpoint, tmp_path / "after-2")
    run(tmp_path / "b" / "run", *overrides, resume=True)
    shutil.copy(tmp_path / "after-2", checkpoint)
    again = run(tmp_path / "b" / "run", *overrides, resume=True)
    np.testing.assert_array_equal(whole.model, again.model)
    assert whole.summary["metrics"] == again.summary["metrics"]


def test_ditto_gives_the_federation_fedavgs_model_and_the_institutions_better_ones(tmp_path: Path) -> None:
    ditto, fedavg = (
        run(tmp_path / name, f"strategy={name}", "secagg=none", "partition=shards") for name in ("ditto", "fedavg")
    )
    np.testing.assert_array_equal(ditto.model, fedavg.model)
    assert ditto.summary["metrics"]["accuracy"] > fedavg.summary["metrics"]["accuracy"]
    files = sorted(path.parent.name for path in (tmp_path / "ditto" / "institutions").rglob("*.3.personal.safetensors"))
    assert files == [f"hospital-{number}" for number in range(1, 6)]


def test_fedbn_leaves_the_published_normalisation_as_it_began(tmp_path: Path) -> None:
    task = get_task("digits_cnn")
    own, outcome = task.layout.normalisation, run(tmp_path, "strategy=fedbn")
    np.testing.assert_array_equal(outcome.model[own], initial_vector(task, 0)[own])
    assert np.abs(outcome.model[~own] - initial_vector(task, 0)[~own]).max() > 0.01


def test_scaffold_with_a_cohort_sampled_from_a_population(tmp_path: Path) -> None:
    overrides = ("strategy=scaffold", "secagg=none", "simulation.institutions=12", "simulation.cohort=4")
    first, second = (run(tmp_path / name, *overrides, "rounds=4") for name in ("a", "b"))
    np.testing.assert_array_equal(first.model, second.model)
    assert len(list((tmp_path / "a" / "institutions").iterdir())) > 4


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("strategy=scaffold", "secagg=none", "simulation.engine=vectorised"), "only plain SGD is stacked"),
        (("strategy=ditto", "secagg=none", "simulation.engine=ray"), "keeps something there"),
        (("strategy=fedbn", "task=digits"), "no normalisation layer"),
        (("strategy=fedper", "task=digits"), "no personal part"),
        (("strategy=scaffold", "task=digits", "privacy=distributed"), "no privacy mechanism"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(overrides: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        run(tmp_path, *overrides)
