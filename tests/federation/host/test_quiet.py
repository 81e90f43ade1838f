"""No library of ours reports home: the settings, and that the libraries really obey them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.cli import run
from sovfed.federation.host.quiet import QUIET, REMOVED, TRACKING, be_quiet, python_command, quiet_environment


def test_child_environment_turns_every_report_off_and_keeps_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    found = quiet_environment()
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["OMP_NUM_THREADS"] == "2"
    assert QUIET.items() <= found.items()


def test_a_slice_of_a_card_is_the_card_of_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's MIG: the driver shows a process the slice that this variable names, as its one card."""
    slice_ = "MIG-3f1c7a52-0d0b-5a6e-9d2c-0f2f6c1b8a11"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", slice_)
    assert quiet_environment()["CUDA_VISIBLE_DEVICES"] == slice_


PLANT = """
import os, pathlib
pathlib.Path(__file__).with_suffix(".imported").touch()
real = pathlib.Path(os.__file__).parent / pathlib.Path(__file__).name
if real.exists():
    exec(compile(real.read_text(), str(real), "exec"), globals())
"""


def plant(folder: Path) -> Path:
    """Modules that note that they were imported, under names that Python or a library of ours looks for."""
    folder.mkdir()
    for name in ("argparse", "queue", "sitecustomize", "usercustomize", "flwr", "numpy", "sovfed"):
        (folder / f"{name}.py").write_text(PLANT)
    return folder


def test_a_child_imports_nothing_from_the_current_folder_or_the_callers_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, path, user = (plant(tmp_path / name) for name in ("here", "path", "user"))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # which tests/conftest.py has set
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(path))
    monkeypatch.setenv("PYTHONUSERBASE", str(user))
    monkeypatch.setenv("PYTHONSTARTUP", str(user / "queue.py"))
    command = python_command("sovfed.federation.host.sandbox")
    for env in (quiet_environment(), dict(os.environ)):  # the command alone holds it too
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=60)
    assert list(tmp_path.rglob("*.imported")) == []
    control = [sys.executable, "-c", "import queue"]
    subprocess.run(control, check=True, capture_output=True, timeout=60)
    assert {found.parent.name for found in tmp_path.rglob("*.imported")} == {"here", "path"}


@pytest.mark.parametrize(
    "name",
    ["PYTHONPATH", "PYTHONHOME", "PYTHONINSPECT", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "SSLKEYLOGFILE",
     "SSL_CERT_FILE", "CUDA_INJECTION64_PATH", "OMP_TOOL_LIBRARIES", "HSA_TOOLS_LIB", "GLIBC_TUNABLES",
     "MALLOC_ARENA_MAX", "GRPC_TRACE", "OPENSSL_CONF", "HYDRA_FULL_ERROR", "AWS_SECRET_ACCESS_KEY", "ANY_SECRET"],
)  # fmt: skip
def test_a_variable_that_is_not_named_does_not_reach_a_child(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "theirs")
    assert quiet_environment(Path("/h")).get(name) != "theirs"


def test_threads_of_children_wait_asleep_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert quiet_environment()["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert "GOMP_SPINCOUNT" not in quiet_environment()


def test_the_agencys_children_may_have_the_credentials_of_its_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    assert quiet_environment(also=TRACKING)["MLFLOW_TRACKING_TOKEN"] == "t"


def test_what_a_library_starts_by_itself_is_safe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plant(tmp_path / "here"))
    command = [sys.executable, "-c", "import queue"]
    subprocess.run(command, env=quiet_environment(tmp_path), check=True, capture_output=True, timeout=60)
    assert list(tmp_path.rglob("*.imported")) == []


def test_python_m_sovfed_stops_looking_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plant(tmp_path / "here"))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    (tmp_path / "here" / "sovfed.py").unlink()  # Python has found that one before anything of ours runs
    command = [sys.executable, "-m", "sovfed", "config", "options"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert not {found.stem for found in tmp_path.rglob("*.imported")} & {"argparse", "queue", "numpy", "flwr"}


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
    assert run(["--version"]) == 0
    assert {name: os.environ[name] for name in QUIET} == dict(QUIET)


def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert run(["client", "init", "--home", str(tmp_path / "file" / "home")]) == 1
    told = f"error: Not a directory: {tmp_path / 'file' / 'home'}; a part of this path is a file: name another place\n"
    assert capsys.readouterr().err == told


def test_a_library_does_not_tell_of_its_font_cache_amid_our_output() -> None:
    script = (
        "from sovfed.federation.host.quiet import be_quiet; be_quiet(); import logging; "
        "logging.getLogger('matplotlib.font_manager').warning('Matplotlib is building the font cache')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
