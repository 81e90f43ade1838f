"""Flower's Ray simulation as an engine gives the model of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError
from sovfed.federation.host.quiet import quiet_environment
from sovfed.server.runs.release import read_model
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import make_population

ASKED = ["task=digits", "partition=dirichlet", "simulation.institutions=6", "simulation.cohort=3", "rounds=3"]


@pytest.mark.deploy
@pytest.mark.timeout(400)
def test_ray_gives_the_model_of_the_in_process_engine(tmp_path: Path) -> None:
    models = []
    for engine in ("ray", "inprocess"):
        folder = tmp_path / engine
        asked = [*ASKED, "secagg=none", f"simulation.engine={engine}", "--no-track", "--folder", str(folder), "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "sovfed", "simulate", *asked],
            env=quiet_environment(), capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        models.append(read_model(folder).vector)
        lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
        assert [len(line["participants"]) for line in lines] == [3, 3, 3]
    assert models[0].tobytes() == models[1].tobytes()


def test_ray_keeps_no_keys_so_secure_aggregation_is_refused(tmp_path: Path) -> None:
    config = compose([*ASKED, "simulation.engine=ray"]).config
    with pytest.raises(ConfigError, match="add secagg=none"):
        simulate_population(config, make_population(config), tmp_path)
