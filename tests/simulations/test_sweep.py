"""Sweeps: what they expand to, what they leave behind, and that an interrupted one ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.host.quiet import quiet_environment
from sovfed.server.runs.release import read_model
from sovfed.simulations import sweep
from sovfed.simulations.cli import simulate
from sovfed.simulations.cli_sweep import compare
from sovfed.simulations.compare import choose_metric, figures, read_runs
from sovfed.simulations.compare_groups import group_runs
from sovfed.simulations.compare_plot import plot

BASE = ("task=digits", "partition=dirichlet", "simulation.institutions=4", "secagg=none", "simulation.engine=inprocess")
SWEEP = (*BASE, "rounds=2", "strategy=fedavg,fedprox", "seed=1,2")


def test_combinations_are_the_product_in_order() -> None:
    combinations = sweep.expand(["rounds=2", "strategy=fedavg,fedprox", "seed=range(1,3)"])
    assert [name for name, _ in combinations] == [
        "strategy=fedavg,seed=1", "strategy=fedavg,seed=2", "strategy=fedprox,seed=1", "strategy=fedprox,seed=2",
    ]  # fmt: skip
    assert combinations[2][1] == ("rounds=2", "strategy=fedprox", "seed=1")


def test_a_glob_takes_the_options_of_a_group() -> None:
    names = [name for name, _ in sweep.expand(["secagg=glob(*)"])]
    assert names == ["secagg=compact", "secagg=full", "secagg=none"]
    with pytest.raises(ConfigError, match="no option of group 'secagg' fits"):
        sweep.expand(["secagg=glob(x*)"])


@pytest.mark.parametrize("text", ["data.path=/data/heart new", "data.path='a,b'", "run_name=a-b", "seed=1"])
def test_a_single_value_is_no_sweep(text: str) -> None:
    assert sweep.swept([text]) == []


def test_an_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="a sweep needs single values"):
        sweep.expand(["task.learning_rate=interval(0,1)"])


def test_a_long_name_is_cut_and_still_its_own() -> None:
    names = [name for name, _ in sweep.expand([f"data.path=/a/{'x' * 200},/b/{'x' * 200}"])]
    assert len(set(names)) == 2
    assert all(len(name) < 120 and "/" not in name for name in names)


def test_a_wrong_combination_stops_everything_before_the_first_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds=0: 'rounds' 0 is outside"):
        sweep.plan([*BASE, "rounds=1,0"], tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_several_values_need_the_option() -> None:
    result = CliRunner().invoke(simulate, ["seed=1,2"])
    assert isinstance(result.exception, ConfigError)
    assert "add -m" in str(result.exception)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow and its SQLAlchemy
def test_a_sweep_its_table_and_its_figure(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    result = CliRunner().invoke(simulate, ["-m", *SWEEP, "--folder", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["failed"] == {}
    assert [(group["group"], group["runs"]) for group in told["groups"]] == [
        ("strategy=fedavg", 2),
        ("strategy=fedprox", 2),
    ]
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "compare.csv").read_text().splitlines()) == 5

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    parent = (folder / "mlflow_run_id").read_text()
    runs = client.search_runs([client.get_run(parent).info.experiment_id])
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
    assert {run.info.run_name for run in children} == {name for name, _ in sweep.expand(SWEEP)}
    assert {run.info.status for run in runs} == {"FINISHED"}

    again = CliRunner().invoke(simulate, ["-m", "--resume", "--folder", str(folder), "--no-track"])
    assert again.exit_code == 0, again.output
    other = CliRunner().invoke(simulate, ["-m", "--resume", "--folder", str(folder), *BASE, "rounds=3"])
    assert "these differ: rounds=2 rounds=3" in str(other.exception)
    compared = CliRunner().invoke(compare, [str(folder), "--metric", "accuracy", "--plot", str(tmp_path / "all.png")])
    assert compared.exit_code == 0, compared.output
    assert (tmp_path / "all.png").exists()


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    asked = ["task=heart", f"data.path={tmp_path},{tmp_path / 'missing'}", "rounds=1"]
    result = CliRunner().invoke(simulate, ["-m", *asked, "--folder", str(folder), "--no-track", "--json"])
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["failed"]) == 2


def test_two_processes_do_not_share_a_sweep(tmp_path: Path) -> None:
    from filelock import FileLock

    planned = sweep.plan([*BASE, "rounds=1"], tmp_path / "sweep")
    with FileLock(tmp_path / "sweep" / ".lock"), pytest.raises(ServiceError, match="another process"):
        sweep.run_sweep(planned, track=False)


def test_a_killed_sweep_ends_with_the_models_of_one_that_was_not(tmp_path: Path) -> None:
    asked = [*BASE, "rounds=120", "seed=1,2"]
    whole = sweep.plan(asked, tmp_path / "whole")
    assert sweep.run_sweep(whole, track=False) == {}
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "sovfed", "simulate", "-m", "--no-track", *asked, "--folder", str(folder)]
    started = folder / "seed=2" / "rounds.jsonl"
    with subprocess.Popen(
        command, env=quiet_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while not (started.exists() and started.read_text().count("\n") >= 3):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert not (folder / "seed=2" / "summary.json").exists()
    (unfinished,) = [run for run in read_runs([folder]) if not run.finished]
    assert 3 <= len(unfinished.rounds) < 120
    assert sweep.run_sweep(sweep.read(folder), track=False) == {}
    for run in whole.runs:
        here, there = (read_model(base / run.name) for base in (tmp_path / "whole", folder))
        assert here.vector.tobytes() == there.vector.tobytes()
        assert len((folder / run.name / "rounds.jsonl").read_text().splitlines()) == 120


def test_privacy_and_utility_are_compared_by_what_the_simulator_measures(tmp_path: Path) -> None:
    private = ["privacy.population=1200", "privacy.delta=1e-4", "privacy.epsilon=1,8"]
    asked = ["task=digits", "partition=iid", "simulation.institutions=5", "rounds=2", "privacy=none,silo", *private]
    planned = sweep.plan(asked, tmp_path / "sweep")
    assert sweep.run_sweep(planned, track=False) == {}
    runs = read_runs([tmp_path / "sweep"])
    lines = [figures(group, choose_metric(runs, None)) for group in group_runs(runs)]
    assert [line["group"] for line in lines] == ["privacy=none", "privacy=silo, epsilon=1", "privacy=silo, epsilon=8"]
    assert all(0 < line["auc"] <= 1 for line in lines)
    assert lines[0]["epsilon"] is None
    assert lines[1]["epsilon"] == pytest.approx(1, rel=0.02)
    summary = json.loads((tmp_path / "sweep" / "privacy=silo,privacy.epsilon=8" / "summary.json").read_text())
    assert summary["metrics"] == {}
    assert set(summary["simulated_metrics"]) >= {"auc", "accuracy"}
    plot(runs, tmp_path / "privacy.png")


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        read_runs([tmp_path])
    (tmp_path / "rounds.jsonl").write_text("")
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ConfigError, match="its files are not those of a run"):
        read_runs([tmp_path])
