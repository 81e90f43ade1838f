"""The benchmark's systems do the same work, and its figures are what its marks say."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from sovfed.simulations.benchmarks.simulation import Case, make_job, measure, ratios


@pytest.mark.deploy
def test_ours_and_a_bare_loop_learn_alike_on_the_same_records(tmp_path: Path) -> None:
    job = make_job(Case("mlp", 50), tmp_path)
    found = {system: measure(system, job, 15, Console(quiet=True)) for system in ("bare", "inprocess", "vectorised")}
    assert found["inprocess"]["accuracy"] == pytest.approx(found["vectorised"]["accuracy"], abs=1e-3)
    assert found["inprocess"]["accuracy"] == pytest.approx(found["bare"]["accuracy"], abs=0.06)
    assert found["bare"]["accuracy"] > 0.7
    for turn in found.values():
        assert turn["updates"] == 15 * 50
        assert turn["memory_mb"] > 50
        assert turn["start_cpu_s"] > 0 and turn["cpu_ms"] > 0


def test_ratios_are_peer_over_ours_at_the_largest_cohort() -> None:
    cpu = {"flower_ray": 8.0, "bare": 1.0, "inprocess": 2.0, "vectorised": 0.5}
    rows = [
        {
            "system": system,
            "workload": "mlp",
            "cohort": cohort,
            "cpu_ms": ms * scale,
            "start_cpu_s": ms,
            "memory_mb": ms,
        }
        for system, ms in cpu.items()
        for cohort, scale in ((10, 3 if system == "bare" else 1), (50, 1))
    ]
    assert ratios(rows) == {
        "inprocess_over_ray_mlp": 4.0, "vectorised_over_ray_mlp": 16.0, "inprocess_over_bare_mlp": 0.5,
        "vectorised_over_bare_mlp": 2.0, "start_over_ray_mlp": 4.0, "memory_over_ray_mlp": 4.0,
    }  # fmt: skip
