"""A package that nobody here knows, built and installed outside the source tree, brings everything a package may."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "examples" / "package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the built wheel was installed into."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    wheels = folder / "wheels"
    built = [*pip, "wheel", "--no-build-isolation", *offline, "--wheel-dir", str(wheels), str(folder / "source")]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


def sovfed(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "sovfed", *arguments]
    return subprocess.run(command, env=environment, cwd=installed.parent, capture_output=True, text=True, check=False)


def summary(installed: Path, folder: str, *settings: str) -> dict[str, object]:
    done = sovfed(installed, "simulate", "--json", "--no-track", "--folder", folder, *settings)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_its_task_connector_optimizer_strategy_and_settings_are_found_by_name(installed: Path) -> None:
    done = sovfed(installed, "config", "show", "task=sepsis", "strategy=lab_cautious", "task.optimizer=lab_sign")
    assert done.returncode == 0, done.stderr
    assert "lab_records" in done.stdout and "lab_cautious" in done.stdout
    told = summary(installed, "one", "task=sepsis", "strategy=lab_cautious", "task.optimizer=lab_sign", "rounds=6")
    assert told["secure_aggregation"] and told["metrics"]["accuracy"] > 0.7  # type: ignore[index]


def test_its_strategy_goes_on_what_institutions_do_in_one_of_ours(installed: Path) -> None:
    """Both sides' checks follow that half: what stays at home, and what privacy does not account for."""
    options = ("task=sepsis", "strategy=lab_personal")
    told = summary(installed, "personal", *options, "rounds=2")
    assert told["strategy"] == "lab_personal" and told["secure_aggregation"]
    kept = list((installed.parent / "personal" / "institutions").rglob("*.2.personal.safetensors"))
    assert len(kept) == len(told["institutions"])  # type: ignore[arg-type]
    refused = sovfed(installed, "simulate", "--no-track", *options, "privacy=distributed")
    assert refused.returncode == 2 and "no privacy mechanism" in refused.stderr
    ours = sovfed(installed, "simulate", "--no-track", "task=sepsis", "strategy=fedadam", "strategy.institution=ditto")
    assert ours.returncode == 2 and "settles itself" in ours.stderr


def test_its_metric_is_added_up_by_secure_aggregation(installed: Path) -> None:
    told = summary(installed, "metric", "task=sepsis", "rounds=4")
    assert told["secure_aggregation"] and set(told["metrics"]) == {"accuracy", "missed", "false_alarms"}  # type: ignore[call-overload]
    shown = sovfed(installed, "task", "check", "sepsis")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "accuracy, missed, false_alarms" in shown.stdout


def test_its_partition_cuts_any_tasks_records_up(installed: Path) -> None:
    done = sovfed(installed, "partition", "task=breast_cancer", "partition=lab_referral", "--json")
    assert done.returncode == 0, done.stderr
    held = [row["by_class"] for row in json.loads(done.stdout)]
    last = [row[-1] for row in held]
    assert abs(last[0] - sum(last[1:])) <= len(last) and len(held) == 4
    first = [row[0] for row in held]
    assert max(first) - min(first) <= 2
    unknown = sovfed(installed, "partition", "task=breast_cancer", "partition=lab_referal")
    assert unknown.returncode == 2 and "lab_referral" in unknown.stderr


def test_it_trains_privately_and_stacked_too(installed: Path) -> None:
    private = summary(
        installed, "private", "task=sepsis", "privacy=distributed", "privacy.population=480", "rounds=2",
        "privacy.epsilon=8", "privacy.delta=1e-4",
    )  # fmt: skip
    assert 0 < private["epsilon"] <= 8  # type: ignore[operator]
    options = ("task=sepsis", "task.optimizer=lab_sign", "rounds=2", "secagg=none")
    stacked = summary(installed, "stacked", *options, "simulation.engine=vectorised")
    alone = summary(installed, "alone", *options, "simulation.engine=inprocess")
    for name, value in stacked["metrics"].items():  # type: ignore[attr-defined]
        assert value == pytest.approx(alone["metrics"][name], abs=1e-5)  # type: ignore[index]


def test_without_it_the_names_are_unknown(tmp_path: Path) -> None:
    done = sovfed(tmp_path, "simulate", "task=sepsis", "--no-track")
    assert done.returncode == 2 and "unknown option 'sepsis'" in done.stderr
