"""The benchmark's systems do the same work, and its figures are what its marks say."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from sovfed.federation.compose import compose
from sovfed.federation.errors import ServiceError
from sovfed.simulations.benchmarks import population
from sovfed.simulations.benchmarks.simulation import Case, make_job, measure, ratios
from sovfed.simulations.benchmarks.simulation_private import make_private
from sovfed.simulations.benchmarks.simulation_private import ratios as private_ratios


@pytest.mark.deploy
def test_ours_and_a_bare_loop_learn_alike_on_the_same_records(tmp_path: Path) -> None:
    job = make_job(Case("mlp", 50), tmp_path)
    turns = {system: measure(system, job, 15, Console(quiet=True)) for system in ("bare", "inprocess", "vectorised")}
    assert turns["inprocess"]["accuracy"] == pytest.approx(turns["vectorised"]["accuracy"], abs=1e-3)
    assert turns["inprocess"]["accuracy"] == pytest.approx(turns["bare"]["accuracy"], abs=0.06)
    assert turns["bare"]["accuracy"] > 0.7
    for turn in turns.values():
        assert turn["updates"] == 15 * 50
        assert turn["memory_mb"] > 50
        assert turn["start_cpu_s"] > 0 and turn["cpu_ms"] > 0


def test_ratios_are_peer_over_ours_and_the_geometric_mean_of_cohorts() -> None:
    cpu = {"flower_ray": 8.0, "bare": 1.0, "inprocess": 2.0, "vectorised": 0.5, "workers": 4.0}
    rows = [
        {
            "system": system, "workload": "cnn", "cohort": cohort, "cpu_ms": ms * scale, "wall_ms": 3 * ms,
            "start_cpu_s": ms, "memory_mb": ms,
        }
        for system, ms in cpu.items()
        for cohort, scale in ((10, 4 if system == "bare" else 1), (50, 1))
    ]  # fmt: skip
    assert ratios(rows) == pytest.approx(
        {
            "inprocess_over_ray_cnn": 4.0, "vectorised_over_ray_cnn": 16.0, "inprocess_over_bare_cnn": 1.0,
            "vectorised_over_bare_cnn": 4.0, "start_over_ray_cnn": 4.0, "memory_over_ray_cnn": 4.0,
            "wall_over_ray_cnn": 2.0,
        }
    )  # fmt: skip


@pytest.mark.deploy
def test_a_round_of_a_population_is_measured() -> None:
    row = population.measure("vectorised", 200, 5, "auto", ["simulation.cohort=8"], Console(quiet=True))
    assert (row["engine"], row["population"]) == ("vectorised", 200)
    assert row["cpu_ms"] > 0 and row["wall_ms"] > 0 and row["memory_mb"] > 50
    with pytest.raises(ServiceError, match="institutions"):
        population.measure("vectorised", 200, 1, "cpu", ["task=nothing"], Console(quiet=True))


def test_ratios_of_populations_are_largest_over_smallest() -> None:
    rows = [
        {"engine": engine, "population": size, "cpu_ms": cpu, "memory_mb": 2 * cpu}
        for engine in population.ENGINES
        for size, cpu in ((100, 3.0), (10, 2.0))
    ]
    assert set(population.ratios(rows).values()) == {1.5}


def test_the_private_job_says_in_its_overrides_what_opacus_does(tmp_path: Path) -> None:
    job = make_private(make_job(Case("logreg", 100), tmp_path))
    privacy = compose([*job.overrides, "simulation.engine=vectorised"]).config.privacy
    assert (privacy.mechanism, privacy.clip, privacy.noise_multiplier) == ("silo", 1.0, 1.0)
    assert (privacy.sampling_rate, privacy.local_steps) == (0.5, 2)


def test_ratios_of_private_rows_are_peer_over_ours() -> None:
    cpu = {"flower_ray_opacus": 12.0, "opacus": 6.0, "inprocess": 3.0, "vectorised": 0.5}
    rows = [{"workload": "mlp_dp", "system": system, "cpu_ms": ms} for system, ms in cpu.items()]
    assert private_ratios(rows) == {
        "inprocess_over_ray_mlp_dp": 4.0, "vectorised_over_ray_mlp_dp": 24.0, "inprocess_over_opacus_mlp_dp": 2.0,
        "vectorised_over_opacus_mlp_dp": 12.0,
    }  # fmt: skip
