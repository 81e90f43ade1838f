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


@pytest.mark.deploy
@pytest.mark.timeout(300)
def test_a_table_that_cannot_be_used_ends_the_run_at_once_with_its_message(tmp_path: Path) -> None:
    """It was asked again, attempt after attempt, and ended with how many replies there were."""
    (tmp_path / "clinics").mkdir()
    for name in ("ahorn", "birke", "kastanie"):
        rows = "".join(f"{'?!' if name == 'birke' else len(name) * 7 + row},{row % 2}\n" for row in range(60))
        (tmp_path / "clinics" / f"{name}.csv").write_text(f"age,ill\n{rows}")
    (tmp_path / "hip.yaml").write_text(
        'format: 1\nname: hip\nversion: "1"\ntitle: hip\nperson: one row a person\n'
        "columns: {age: {kind: number, low: 0, high: 120}}\n"
        'target: {kind: binary, column: ill, classes: ["0", "1"]}\nmodel: {family: linear}\n'
    )
    asked = [f"task={tmp_path / 'hip.yaml'}", f"data.path={tmp_path / 'clinics'}", "secagg=none", "rounds=2"]
    done = subprocess.run(
        [sys.executable, "-m", "sovfed", "simulate", *asked, "simulation.engine=ray", "--no-track"],
        env=quiet_environment(), capture_output=True, text=True, timeout=200, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "birke.csv: 60 of 60 rows cannot be used: column 'age': 60 values are no number" in done.stderr
    assert "attempt" not in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("sovfed-simulation-*"))
