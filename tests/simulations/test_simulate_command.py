"""`sovfed simulate` and `sovfed compare` on a terminal: what is told of a run, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sovfed.federation.errors import ConfigError
from sovfed.federation.models.saved import load_model
from sovfed.federation.tasks.registry import get_task
from sovfed.simulations.baselines import Comparison
from sovfed.simulations.cli import simulate
from sovfed.simulations.cli_sweep import compare
from sovfed.simulations.comparison_view import table

SMALL = ("task=breast_cancer", "rounds=2", "--no-track")


def simulated(folder: Path, *asked: str) -> Result:
    result = CliRunner().invoke(simulate, [*SMALL, *asked, "--folder", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def test_baselines_stand_in_the_table_the_summary_and_a_comparison(tmp_path: Path) -> None:
    told = simulated(tmp_path / "run", "--baselines").stdout
    assert "pooled" in told and "all tests together" in told and "hospital-4" in told
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["institution"] for row in summary["by_institution"]] == [f"hospital-{n}" for n in range(1, 5)]
    assert summary["federated"] == pytest.approx(summary["metrics"]["auc"], abs=0.004)  # exact, and of 128 bins
    worst = min(row["federated"] for row in summary["by_institution"])
    compared = json.loads(CliRunner().invoke(compare, [str(tmp_path / "run"), "--json"]).stdout)
    assert compared["groups"][0]["worst_auc"] == worst
    assert "worst: auc of the institution" in CliRunner().invoke(compare, [str(tmp_path / "run")]).stdout


def test_without_baselines_there_is_no_table_and_no_column_that_nobody_can_fill(tmp_path: Path) -> None:
    assert "pooled" not in simulated(tmp_path / "run").stdout
    assert "worst" not in CliRunner().invoke(compare, [str(tmp_path / "run")]).stdout


@pytest.mark.parametrize(("asked", "why"), [(["-m", "seed=1,2"], "leave out -m"), (["task=echo"], "trains no model")])
def test_baselines_that_cannot_be_are_refused_before_anything_runs(tmp_path: Path, asked: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        CliRunner().invoke(simulate, [*asked, "--baselines", "--folder", str(tmp_path / "run")], catch_exceptions=False)
    assert not (tmp_path / "run").exists()


def test_the_table_names_the_first_and_counts_all() -> None:
    row = {"train": 3, "test": 2, "pooled": 0.75, "alone": None, "federated": 0.5}
    comparison = Comparison("auc", 0.75, 0.25, 0.5, [{"institution": name, **row} for name in "abc"])
    shown = table(get_task("breast_cancer"), comparison, most=2)
    columns = [list(column.cells) for column in shown.columns]
    assert columns[0] == ["a", "b", "all tests together"]
    assert columns[1] == ["3", "3", "9"]
    assert columns[4] == ["–", "–", "0.250"]
    assert columns[6] == ["–", "–", "+0.250"]


def test_a_private_run_says_what_to_expect_and_its_card_what_only_a_simulation_knows(
    tmp_path: Path,
) -> None:
    asked = ("privacy=distributed", "privacy.noise_multiplier=1", "task.momentum=0")
    told = simulated(tmp_path / "run", *asked)
    expected = "privacy.population = 1000 persons (as by default: declare it if there are surely more)"
    assert told.stderr.startswith("what to expect at ε = ") and expected in told.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    card = (tmp_path / "run" / "model.html").read_text()
    assert "No metrics" not in card and "As only a simulation can know it" in card
    assert f"<td>auc</td><td>{summary['simulated_metrics']['auc']:.4g}</td>" in card
    assert summary["model_sha256"] in card
    assert load_model(tmp_path / "run").facts.run.metrics == {}  # what a deployed one would tell
