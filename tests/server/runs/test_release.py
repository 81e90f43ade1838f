"""What a run publishes says what its summary says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.federation.errors import DataError
from sovfed.federation.files import write_private
from sovfed.federation.models.facts import Privacy
from sovfed.federation.tasks.registry import get_task
from sovfed.server.cli.run import cli as run
from sovfed.server.runs.release import DIGEST, FILES, SUMMARY, digest, publish, read_model

TASK = get_task("digits_cnn", normalisation="group")
SUMMED: dict[str, Any] = {
    "rounds": 4, "strategy": "fedadam", "institutions": ["north", "south"], "transport": "stream", "metrics": {},
    "epsilon": 2.5, "delta": 1e-6, "privacy": {"mechanism": "silo"}, "config": {"task": {"normalisation": "group"}},
}  # fmt: skip


def published(folder: Path, **changed: Any) -> str:
    vector = np.linspace(-1, 1, TASK.parameters, dtype=np.float32)
    said = {**SUMMED, **changed}
    found = publish(folder, TASK, vector, TASK.transform.public_scale, said)
    write_private(folder / SUMMARY, json.dumps({**said, DIGEST: found}).encode())
    return found


def test_the_facts_are_the_summarys(tmp_path: Path) -> None:
    folder = tmp_path / "study-1"
    folder.mkdir()
    assert published(folder) == digest(folder / FILES[0])
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, SUMMARY])
    run = read_model(folder).facts.run
    assert (run.name, run.rounds, run.strategy, run.institutions) == ("study-1", 4, "fedadam", ("north", "south"))
    assert run.privacy == Privacy("silo", 2.5, 1e-6) and not run.simulated


def test_a_model_with_its_layers_replaced_is_built_again_so(tmp_path: Path) -> None:
    published(tmp_path)
    model = read_model(tmp_path)
    assert not any("running_mean" in name for name, _ in model.module.named_buffers())
    assert model.predict(TASK.schema.made_up(2))["digit"].shape == (2,)


def test_without_privacy_and_institutions_it_says_so(tmp_path: Path) -> None:
    published(tmp_path, epsilon=None, transport="in-memory", metrics={"accuracy": 0.5})
    run = read_model(tmp_path).facts.run
    assert run.privacy is None and run.simulated and run.metrics == {"accuracy": 0.5}


def test_a_run_without_a_digest_gives_no_model(tmp_path: Path) -> None:
    published(tmp_path)
    write_private(tmp_path / SUMMARY, json.dumps(SUMMED).encode())
    with pytest.raises(DataError, match="expected 'None'"):
        read_model(tmp_path)


def test_run_check_takes_a_folder_and_notices_a_changed_model(tmp_path: Path) -> None:
    """Seen: "has not finished" of a simulation's folder, which the documents say that a RUN may be."""
    found = published(tmp_path)
    done = CliRunner().invoke(run, ["check", str(tmp_path)])
    assert done.exit_code == 0 and found in done.output
    model = tmp_path / FILES[0]
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert isinstance(CliRunner().invoke(run, ["check", str(tmp_path)]).exception, DataError)
