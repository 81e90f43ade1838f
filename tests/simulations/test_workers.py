"""Worker processes change nothing but the time, and one that dies is told."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.server.coordinator import Outcome
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import Institution, make_population

BASE = ("task=digits", "partition=dirichlet", "simulation.engine=inprocess", "rounds=3")
PLAIN = (*BASE, "secagg=none", "simulation.institutions=12", "simulation.cohort=7")


def _run(folder: Path, *overrides: str) -> Outcome:
    config = compose(overrides).config
    return simulate_population(config, make_population(config), folder)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_the_model_is_bitwise_the_same_for_any_number_of_workers(tmp_path: Path, strategy: str) -> None:
    found = [_run(tmp_path / str(n), *PLAIN, f"strategy={strategy}", f"simulation.workers={n}") for n in (0, 1, 2, 3)]
    for other in found[1:]:
        assert np.array_equal(other.model, found[0].model)
        assert other.summary["metrics"] == found[0].summary["metrics"]
        assert other.summary["bytes_up_per_round"] == found[0].summary["bytes_up_per_round"]


def test_workers_take_part_in_secure_aggregation(tmp_path: Path) -> None:
    here, there = (
        _run(tmp_path / str(n), *BASE, "simulation.institutions=5", f"simulation.workers={n}") for n in (0, 2)
    )
    assert there.summary["secure_aggregation"]
    assert there.model == pytest.approx(here.model, abs=1e-4)  # updates are rounded at random, with or without workers


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    config = compose((*PLAIN, "simulation.workers=2")).config
    whole = make_population(config)
    here = os.getpid()

    def end(number: int) -> Institution:
        one = whole[number]
        return Institution(one.name, one.site, lambda task: one.load(task) if os.getpid() == here else os._exit(7))

    with pytest.raises(ServiceError, match=r"worker-[12] of 2 ended with exit code 7"):
        simulate_population(config, [end(number) for number in range(len(whole))], tmp_path)


def test_other_engines_take_no_workers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not for 'vectorised'"):
        _run(tmp_path, *PLAIN, "simulation.engine=vectorised", "simulation.workers=2")
