"""Private runs of the whole federation in one process: what is refused, what trains, and what is told of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.tasks.registry import get_task
from sovfed.server.cli.rounds_shown import round_table
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.release import SUMMARY
from sovfed.simulations.baselines import compare_sites
from sovfed.simulations.federation import simulate, sites

CNN = (
    "task=digits_cnn", "privacy=distributed", "rounds=3", "server.min_cohort=4", "privacy.epsilon=8",
    "privacy.delta=1e-4", "privacy.population=1200", "privacy.clip=0.5", "task.learning_rate=1",
)  # fmt: skip


def test_a_private_run_with_batchnorm_is_refused_and_the_override_it_names_trains(tmp_path: Path) -> None:
    config = compose([*CNN]).config
    with pytest.raises(PrivacyError, match=r"2 \(BatchNorm2d\): .*; 5 \(BatchNorm2d\): .*task\.normalisation=group"):
        simulate(config, sites(config), tmp_path / "own")
    config = compose([*CNN, "task.normalisation=group"]).config
    outcome = simulate(config, sites(config), tmp_path / "group")
    assert outcome.model.shape == (get_task("digits_cnn", normalisation="group").parameters,)
    assert outcome.summary["epsilon"] <= 8
    assert outcome.summary["simulated_metrics"]["loss"] < 3
    assert (tmp_path / "group" / "privacy.html").exists()


def test_seconds_of_computing_are_told_nowhere_in_a_private_run(tmp_path: Path) -> None:
    config = compose(["privacy=distributed", "rounds=2", "server.min_cohort=4", "privacy.population=400"]).config
    simulate(config, sites(config), tmp_path)
    lines = read_rounds(tmp_path)
    assert [(line["seconds_compute"], line["overhead_seconds"]) for line in lines] == [(None, None)] * 2
    summary = json.loads((tmp_path / SUMMARY).read_text())
    assert summary["overhead_seconds_per_round_median"] is None
    assert summary["seconds_per_round_median"] > 0
    assert (tmp_path / "curves.png").stat().st_size > 0
    assert list(round_table(lines).columns[5].cells) == ["–", "–"]


def test_group_normalisation_also_trains_without_privacy(tmp_path: Path) -> None:
    config = compose(["task=digits_cnn", "task.normalisation=group", "rounds=1", "server.min_cohort=4"]).config
    outcome = simulate(config, sites(config), tmp_path)
    comparison = compare_sites(config, sites(config), outcome.model, outcome.scale)
    assert comparison.federated > 0.8


def test_the_echo_has_nothing_to_normalise() -> None:
    with pytest.raises(ConfigError, match="'echo' has no model"):
        compose(["task=echo", "task.normalisation=group"])
