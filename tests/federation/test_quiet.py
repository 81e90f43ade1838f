"""No library of ours reports home: the settings, and that the libraries really obey them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.cli import main
from sovfed.federation.quiet import QUIET, REMOVED, be_quiet, quiet_environment


def test_child_environment_turns_every_report_off_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = quiet_environment()
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["OMP_NUM_THREADS"] == "2"
    assert QUIET.items() <= found.items()


def test_settings_that_reopen_flower_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REMOVED:
        monkeypatch.setenv(name, "1")
    assert not set(REMOVED) & set(quiet_environment())


def test_flower_keeps_its_files_in_the_home(tmp_path: Path) -> None:
    assert quiet_environment(tmp_path)["FLWR_HOME"] == str(tmp_path / "state" / "flwr")


def test_be_quiet_changes_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*QUIET, "FLWR_HOME"):
        monkeypatch.setenv(name, "before")
    monkeypatch.setenv("FLWR_DATABASE", "/elsewhere")
    be_quiet(tmp_path)
    import os

    assert "FLWR_DATABASE" not in os.environ
    assert QUIET.items() <= os.environ.items()


def test_flower_and_mlflow_see_themselves_switched_off() -> None:
    """Asked of the libraries themselves, so that a renamed setting is noticed."""
    program = """
import json
import os
from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED
from flwr.supercore.constant import FLWR_DISABLE_UPDATE_CHECK
from flwr.superlink.cli.flower_superlink import FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION
from mlflow.telemetry.utils import is_telemetry_disabled
print(json.dumps([FLWR_TELEMETRY_ENABLED, FLWR_DISABLE_UPDATE_CHECK, FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION,
                  is_telemetry_disabled()]))
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    telemetry, update_check, dependencies, mlflow_off = json.loads(result.stdout.splitlines()[-1])
    assert telemetry == "0"
    assert {update_check, dependencies} <= set(QUIET)
    assert mlflow_off is True


def test_the_command_line_is_quiet_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.setenv(name, "as it was")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert {name: os.environ[name] for name in QUIET} == dict(QUIET)
