"""A packaged model in one's own process: only after the archive of its very task was named there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.federation.archive.archive import Archive

SAVE = """
import sys
from pathlib import Path
import numpy as np
import sovfed.task
from sovfed.federation.models.facts import RunFacts
from sovfed.federation.models.pyfunc import write_flavor
from sovfed.federation.models.saved import load_model, save_model
from sovfed.federation.tasks import initial_vector
task, folder = sovfed.task.add_archive(sys.argv[1]), Path(sys.argv[2])
facts = RunFacts(name="study-1", rounds=1, strategy="fedavg", date="2026-11-29", institutions=("a",), metrics={})
save_model(folder, task, initial_vector(task, 0), task.transform.public_scale, facts)
write_flavor(folder, load_model(folder), "0" * 32, "model")
"""
LOAD = """
import json, sys
import mlflow, pandas
import sovfed.task
for archive in sys.argv[2:]:
    sovfed.task.add_archive(archive)
frame = pandas.DataFrame({"lactate": [2, 9], "temperature": [37.0, 39.5], "ward": ["north", None]})
print(json.dumps(list(mlflow.pyfunc.load_model(sys.argv[1]).predict(frame)["outcome"])))
"""


def run(script: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=300)


@pytest.fixture(scope="module")
def archive(packed: Archive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / packed.file_name
    path.write_bytes(packed.to_bytes())
    return path


@pytest.fixture(scope="module")
def model(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    done = run(SAVE, archive, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_mlflow_loads_a_packaged_model_where_its_archive_was_named(archive: Path, model: Path) -> None:
    done = run(LOAD, model, archive)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) <= {"well", "septic"}


def test_without_the_archive_nothing_is_imported_and_the_error_says_what_to_do(model: Path) -> None:
    done = run(LOAD, model)
    assert done.returncode == 1 and "wardnet was imported" not in done.stdout
    assert "first `sovfed.task.add_archive(ARCHIVE)`" in done.stderr
