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
    place = tmp_path_factory.mktemp("outside")
    shutil.copytree(PACKAGE, place / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    wheels = place / "wheels"
    built = [*pip, "wheel", "--no-build-isolation", *offline, "--wheel-dir", str(wheels), str(place / "source")]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", str(place / "site"), str(wheel)], check=True)
    return place / "site"


def sovfed(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "sovfed", *arguments]
    return subprocess.run(command, env=environment, cwd=installed.parent, capture_output=True, text=True, check=False)


def summary(installed: Path, folder: str, *settings: str) -> dict[str, object]:
    done = sovfed(installed, "simulate", "--json", "--no-track", "--folder", folder, *settings)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_its_task_connector_optimizer_strategy_and_settings_are_found_by_name(installed: Path) -> None:
    done = sovfed(installed, "config", "show", "task=sepsis", "strategy=lab_cautious", "task.optimizer=lab_sign")
    assert done.returncode == 0, done.stderr
    assert "lab_records" in done.stdout and "lab_cautious" in done.stdout
    found = summary(installed, "one", "task=sepsis", "strategy=lab_cautious", "task.optimizer=lab_sign", "rounds=6")
    assert found["secure_aggregation"] and found["metrics"]["auc"] > 0.8  # type: ignore[index]


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
