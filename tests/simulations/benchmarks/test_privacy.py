"""`sovfed bench privacy`: one grid for all, and a curator's noise that leaves something to learn."""

from __future__ import annotations

import pytest

from sovfed.simulations.baselines import merge
from sovfed.simulations.benchmarks import privacy
from sovfed.simulations.benchmarks.privacy import BEST, EPSILONS, GRID, MECHANISMS, Setting, configure


def test_every_mechanism_runs_at_a_setting_of_the_one_grid() -> None:
    assert set(BEST) == set(MECHANISMS)
    assert {setting for of in BEST.values() for setting in of.values()} <= set(GRID)
    assert all(set(of) == set(EPSILONS) for of in BEST.values())
    assert BEST["distributed"] == BEST["central"]


@pytest.mark.parametrize("mechanism", ["distributed", "silo"])
def test_the_run_is_what_the_setting_says(mechanism: str) -> None:
    config = configure(3.0, mechanism, Setting(100, 0.3, 2.0), 1_259)
    assert (config.rounds, config.privacy.local_steps, config.privacy.clip) == (100, 1, 0.3)
    assert config.task.learning_rate == pytest.approx(2.0 / 0.3)
    assert (config.privacy.mechanism, config.privacy.delta, config.privacy.spare_steps) == (mechanism, 1e-4, 0)


def test_a_curator_learns_and_silos_learn_less() -> None:
    """After 20 steps at ε = 1: 0.88 (deviation 0.011) and 0.79 (0.020) on the held-out records; the mean of five each.

    Noise cannot be seeded: chance fails less than one run in a million.
    """
    setting = Setting(20, 1.0, 2.0)
    _, parts = privacy._records(setting, 1.0)
    scores, multipliers = list[float](), set[float]()
    for places in ([merge(parts)], parts):
        models = [privacy._without_federation(1.0, setting, places) for _ in range(5)]
        scores.append(sum(privacy._score(model, parts) for model, _ in models) / len(models))
        multipliers |= {multiplier for _, multiplier in models}
    central, silo = scores
    assert len(multipliers) == 1
    assert central > 0.75 and central - silo > 0.025
